"""Which names and shapes do the weights of a live transformers model have in a checkpoint?"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

import torch
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from rl.precision.float32_weights import float32_weights
from rl.precision.number_format import NumberFormat, Parts
from rl.ranks import whole
from rl.weights.merged import A, B, adapter_state, base_state, merged_state
from rl.weights.source import WeightsError

LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


def checkpoint_tensors(
    model: PreTrainedModel,
    dtype: Literal["float32", "bfloat16"],
    quantised: Mapping[str, Parts] | None = None,
    *,
    is_merged: bool = True,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield what `save_pretrained` would save, layer by layer, as views of the model's memory wherever possible.

    transformers renames weights and stacks experts when it loads a checkpoint; vLLM wants the checkpoint's names and
    one tensor per expert. Of tied weights only the one that is saved is yielded. Matrices are rounded to `dtype` one at
    a time, as the engine would, except `float32_weights`. Vectors (norms, biases) keep their precision: the engine
    rounds those that it does not hold in float32. An adapter is merged, or with `is_merged=False` left out.

    For weights in `quantised` (by the live model's names), the parts of their number format are yielded instead of the
    numbers, under the format's checkpoint names; `restored_tensors` is the inverse. Of a policy that is spread over
    ranks, one layer at a time is made whole, and all ranks must take all tensors.
    """
    for part in checkpoint_parts(model, dtype, quantised, is_merged=is_merged):
        yield from part.items()


def checkpoint_parts(
    model: PreTrainedModel,
    dtype: Literal["float32", "bfloat16"],
    quantised: Mapping[str, Parts] | None = None,
    *,
    is_merged: bool = True,
) -> Iterator[dict[str, torch.Tensor]]:
    """What `checkpoint_tensors` yields, a layer at a time; what belongs to no layer comes first."""
    quantised = quantised or {}
    state = _without_copies(model, merged_state(model) if is_merged else base_state(model))
    in_float32 = float32_weights(model)
    for names in _layers(state):
        codes = {name: _whole_parts(quantised[name], state[name]) for name in names if name in quantised}
        part = dict(_part_tensors(model, codes))
        numbers = {name: state[name] for name in names if name not in quantised}
        # In the order of `names`, which all ranks have: each `whole` waits for the others.
        kept = revert_weight_conversion(
            model, {n: whole(numbers.pop(n)) for n in names if n in in_float32 and n in numbers}
        )
        # Slices are rounded before they are gathered, to send half the bytes; whole weights one matrix at a time.
        gathered = {name: whole(_rounded(t, dtype)) if isinstance(t, DTensor) else t for name, t in numbers.items()}
        for name, tensor in revert_weight_conversion(model, gathered).items():
            part[name] = _rounded(tensor, dtype)
        yield part | kept


def _rounded(tensor: torch.Tensor, dtype: str) -> torch.Tensor:
    is_matrix = tensor.dim() > 1 and tensor.is_floating_point()
    return tensor.to(getattr(torch, dtype)) if is_matrix else tensor


def _layers(names: Iterable[str]) -> Iterator[list[str]]:
    """The names of each layer, in the layers' order."""
    layers: dict[int, list[str]] = {}
    for name in names:
        found = LAYER.search(name)
        layers.setdefault(int(found[1]) if found else -1, []).append(name)
    return (layers[number] for number in sorted(layers))


def _without_copies(model: PreTrainedModel, state: dict[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """Of tied weights only the one that is saved."""
    if not any(isinstance(tensor, DTensor) for tensor in state.values()):
        return remove_tied_weights_from_state_dict(state, model)
    # transformers would gather the embeddings from all ranks, several times, only to compare where they lie.
    copies = {
        copy
        for copy, saved in model.all_tied_weights_keys.items()
        if model.get_parameter(copy) is model.get_parameter(saved)
    }
    return {name: tensor for name, tensor in state.items() if name not in copies}


def _whole_parts(parts: Parts, weight: torch.Tensor) -> Parts:
    """Each part of a quantised weight made whole. A part has the weight's first axis, or is one number."""
    if not isinstance(weight, DTensor):
        return parts
    return {suffix: _gathered(part, weight) if part.dim() else part for suffix, part in parts.items()}


def _gathered(part: torch.Tensor, weight: DTensor) -> torch.Tensor:
    shape = torch.Size((weight.shape[0], *part.shape[1:]))
    stride = torch.empty(shape, device="meta").stride()
    values = part.view(torch.uint8) if part.dtype.itemsize == 1 else part  # process groups do not know 8-bit floats
    spread = DTensor.from_local(values, weight.device_mesh, weight.placements, shape=shape, stride=stride)
    return whole(spread).view(part.dtype)


def adapter_tensors(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield A and B of each adapted weight, float32, under its name in the checkpoint with a suffix.

    `rl.weights.merged.with_adapter` merges them into what `checkpoint_tensors` yields without an adapter. Raises
    `WeightsError` for a weight that is not merely renamed in the checkpoint. Experts that are stacked in the model only
    are told apart by their numbers: each has its own matrices, and parts of one expert share its A.
    """
    for name, (a, b) in adapter_state(model).items():
        if b.dim() == 3:
            yield from _expert_matrices(model, name, a, b)
            continue
        shape = (b.shape[0], a.shape[1])
        saved = revert_weight_conversion(model, {name: torch.empty(shape, device="meta")})
        if [tuple(tensor.shape) for tensor in saved.values()] != [shape]:
            raise _stored_otherwise(name)
        (saved_name,) = saved
        yield saved_name + A, a
        yield saved_name + B, b


def _expert_matrices(
    model: PreTrainedModel, name: str, a: torch.Tensor, b: torch.Tensor
) -> Iterator[tuple[str, torch.Tensor]]:
    """Of one expert each, or stacked where the checkpoint stacks experts too."""
    numbers = torch.arange(len(b))[:, None, None].expand(b.shape)
    of_expert = revert_weight_conversion(model, {name: numbers})
    weight = torch.empty((*b.shape[:-1], a.shape[-1]), device="meta")
    saved = revert_weight_conversion(model, {name: weight})
    for saved_name, part in revert_weight_conversion(model, {name: b}).items():
        part_a = a if part.dim() == b.dim() else a[int(of_expert[saved_name][0, 0])]
        if saved[saved_name].shape != (*part.shape[:-1], part_a.shape[-1]):
            raise _stored_otherwise(name)
        yield saved_name + A, part_a
        yield saved_name + B, part


def _stored_otherwise(name: str) -> WeightsError:
    return WeightsError(
        f"the checkpoint holds {name} in parts, or as a part, or transposed, so its adapter cannot be published alone;"
        " set learner.adapter.publish: merged"
    )


def restored_tensors(
    tensors: Iterable[tuple[str, torch.Tensor]], number_format: NumberFormat, dtype: torch.dtype
) -> Iterator[tuple[str, torch.Tensor]]:
    """What `checkpoint_tensors` yielded, with the format's parts replaced by the numbers they represent, in `dtype`."""
    held = list(tensors)
    yield from Restoring([name for name, _ in held], number_format, dtype).take(held)


class Restoring:
    """Restores tensors that arrive in pieces; the parts of a weight may be in several of them.

    A weight is quantised if all its parts exist; a tensor that is merely named like a part is unchanged.
    """

    def __init__(self, names: Iterable[str], number_format: NumberFormat, dtype: torch.dtype) -> None:
        """`names` are those of all tensors."""
        known, self._format, self._dtype = set(names), number_format, dtype
        suffixes = number_format.suffixes
        quantised = {name for name in known if suffixes and all(name + suffix in known for suffix in suffixes)}
        self._parts = {name + suffix: (name, suffix) for name in quantised for suffix in suffixes}
        self._held: dict[str, dict[str, torch.Tensor]] = {}

    def take(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        """The restored tensors of this piece."""
        for name, tensor in tensors:
            if name not in self._parts:
                yield name, tensor
                continue
            weight, suffix = self._parts[name]
            parts = self._held.setdefault(weight, {})
            parts[suffix] = tensor
            if len(parts) == len(self._format.suffixes):
                yield weight, self._format.dequantise(self._held.pop(weight), self._dtype)


def _part_tensors(model: PreTrainedModel, quantised: Mapping[str, Parts]) -> Iterator[tuple[str, torch.Tensor]]:
    """The parts of each quantised weight, by the checkpoint's names.

    transformers splits stacked weights along their leading axes when it saves them. All parts have these axes, so each
    is split the same way; for that, a part with one number per matrix is spread over the matrix's rows.
    """
    suffixes = next(iter(quantised.values()), {}).keys()
    saved = {
        suffix: revert_weight_conversion(model, {name: _spread(parts, suffix) for name, parts in quantised.items()})
        for suffix in suffixes
    }
    scalars = {suffix for suffix in suffixes if any(_is_scalar(parts, suffix) for parts in quantised.values())}
    for name, codes in saved.get("", {}).items():
        for suffix in suffixes:
            part = saved[suffix][name]
            # Axes of length 1 are lost in the conversion.
            yield name + suffix, part.flatten()[0] if suffix in scalars else part.reshape(*codes.shape[:-1], -1)


def _is_scalar(parts: Parts, suffix: str) -> bool:
    """Whether this part is one number per matrix."""
    return parts[suffix].dim() == parts[""].dim() - 2


def _spread(parts: Parts, suffix: str) -> torch.Tensor:
    if not _is_scalar(parts, suffix):
        return parts[suffix]
    return parts[suffix][..., None, None].expand(*parts[""].shape[:-1], 1)
