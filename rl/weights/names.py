"""Under which names, and cut how, does a live transformers model's checkpoint hold its weights?"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

import torch
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from rl.precision.nvfp4 import Quantised, dequantise

_ROUTER = ".gate.weight"
BLOCK_SCALES, TENSOR_SCALE = "_scale", "_scale_2"
"""What ModelOpt's checkpoints append to a weight's name."""


def checkpoint_tensors(
    model: PreTrainedModel, dtype: Literal["float32", "bfloat16"], quantised: Mapping[str, Quantised] | None = None
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield what `save_pretrained` would save, layer by layer, as views of the model's memory wherever possible.

    transformers renames weights and stacks experts when it loads a checkpoint; vLLM wants the checkpoint's names and
    one tensor an expert. Of tied weights only the one that is saved is yielded. Matrices are rounded to `dtype` one at
    a time, as the engine would. Vectors (norms, biases, Mamba's A) and routers keep their precision, for engines hold
    some of them in float32 whatever the dtype.

    Of the weights in `quantised` (by the live model's names) not the numbers are yielded but codes, block scales and
    tensor scale, under ModelOpt's names; `restored_tensors` is the way back.
    """
    quantised = quantised or {}
    state = remove_tied_weights_from_state_dict(model.state_dict(), model)
    yield from _packed_tensors(model, quantised)
    state = {name: tensor for name, tensor in state.items() if name not in quantised}
    for name, tensor in revert_weight_conversion(model, state).items():
        is_rounded = tensor.dim() > 1 and tensor.is_floating_point() and not name.endswith(_ROUTER)
        yield name, tensor.to(getattr(torch, dtype)) if is_rounded else tensor


def restored_tensors(
    tensors: Iterable[tuple[str, torch.Tensor]], dtype: torch.dtype
) -> Iterator[tuple[str, torch.Tensor]]:
    """What `checkpoint_tensors` yielded, with the numbers that codes and scales stand for in place of those."""
    held = dict(tensors)
    packed = {name for name in held if name + BLOCK_SCALES in held and name + TENSOR_SCALE in held}
    scales = {name + end for name in packed for end in (BLOCK_SCALES, TENSOR_SCALE)}  # others may be named so too
    for name, tensor in held.items():
        if name in packed:
            yield name, dequantise(Quantised(tensor, held[name + BLOCK_SCALES], held[name + TENSOR_SCALE]), dtype)
        elif name not in scales:
            yield name, tensor


def _packed_tensors(model: PreTrainedModel, quantised: Mapping[str, Quantised]) -> Iterator[tuple[str, torch.Tensor]]:
    """Codes, block scales and tensor scale of each quantised weight, by the checkpoint's names.

    transformers cuts stacked weights apart along their leading axes when it saves them. All three tensors have these
    axes, so each goes the same way; the tensor scale of a matrix is spread over its rows for that.
    """
    codes = {name: weight.packed for name, weight in quantised.items()}
    block_scales = {name: weight.block_scales for name, weight in quantised.items()}
    tensor_scales = {
        name: weight.tensor_scale[..., None, None].expand(*weight.packed.shape[:-1], 1)
        for name, weight in quantised.items()
    }
    saved = [revert_weight_conversion(model, part) for part in (codes, block_scales, tensor_scales)]
    for name, part in saved[0].items():
        yield name, part
        yield name + BLOCK_SCALES, saved[1][name].reshape(*part.shape[:-1], -1)  # axes of length 1 get lost
        yield name + TENSOR_SCALE, saved[2][name].flatten()[0]
