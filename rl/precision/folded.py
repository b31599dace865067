"""Which weights of a policy are quantised, and what are their folded (fake-quantised) values?

`FoldedWeights` is the straight-through fake quantiser of a whole model: forward and backward passes see the folded
(quantised and dequantised) weights, the gradient goes unchanged to the float32 master weights. Folding happens once
after each optimiser step, not in every pass (Courbariaux et al. 2015, https://arxiv.org/abs/1511.00363). The base of a
low-rank adapter is never trained: it is folded once, and needs no master weights.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from rl.precision.amax import shared_amax
from rl.precision.float32_weights import float32_weights
from rl.precision.number_format import NumberFormat, Parts, PrecisionError
from rl.ranks import ALONE, Ranks, local


class FoldedWeights:
    """The quantised weights of a model whose parameters are the float32 master weights.

    With a format that does not quantise, there are none and all methods do nothing. Of a model that is spread over
    ranks, each rank folds its slices, with the scales of whole matrices. Raises `PrecisionError` if a weight or a slice
    does not fit the format, or if nothing is left to quantise.
    """

    def __init__(self, model: nn.Module, precision: NumberFormat, ranks: Ranks = ALONE) -> None:
        self._precision = precision
        self._model = model
        self._ranks = ranks
        names = quantised_names(model, precision) if precision.is_quantised else ()
        self._masters = {name: model.get_parameter(name) for name in names}
        self._quantised: dict[str, Parts] = {}
        self._folded: dict[str, Tensor] = {}
        self._is_in = False
        self.refresh()
        self._description = self._described()

    @property
    def quantised(self) -> Mapping[str, Parts]:
        """By parameter name: what the master weights, or this rank's slices, were quantised to when they were last
        folded."""
        return self._quantised

    def refresh(self) -> float:
        """Fold the master weights as they are now; returns the share of codes that changed since the last time."""
        assert not self._is_in, "the parameters hold folded weights, not the masters"
        if not self._masters:
            return 0.0
        number_format, before = self._precision, self._quantised
        slices = {name: local(master) for name, master in self._masters.items()}
        largest = shared_amax(slices, self._ranks)
        self._quantised, self._folded = {}, {}
        for name, values in slices.items():
            self._quantised[name], self._folded[name] = number_format.fold(values, largest[name])
        if not before:
            return 0.0
        num_changed = sum(number_format.num_changed(old, self._quantised[name]) for name, old in before.items())
        changed = self._ranks.sum(torch.tensor(float(num_changed), dtype=torch.float64, device=self._device))
        return changed.item() / sum(master.numel() for master in self._masters.values())

    @property
    def _device(self) -> torch.device:
        return local(next(iter(self._masters.values()))).device

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The model's parameters hold the folded weights inside, and the master weights again outside.

        Gradients of the folded weights are those of the master weights: the parameters stay the same objects.
        """
        self.put_in()
        try:
            yield
        finally:
            self.take_out()

    def put_in(self) -> None:
        """Enter `in_place`, for callers whose code inside it is not one block."""
        assert not self._is_in, "the folded weights are in place already; a second swap would train on the masters"
        self._swap()

    def take_out(self) -> None:
        """Leave `in_place`."""
        assert self._is_in, "the masters are in place already"
        self._swap()

    def _swap(self) -> None:
        self._is_in = not self._is_in
        for name, master in self._masters.items():
            if isinstance(master, DTensor):  # FSDP reads the slice's own memory, whatever `master.data` is
                values = local(master)
                kept = values.clone()
                values.copy_(self._folded[name])
                self._folded[name] = kept
            else:
                self._folded[name], master.data = master.data, self._folded[name]

    def freeze(self) -> None:
        """Give up the master weights of parameters that do not train, the base of an adapter; `quantised` stays.

        They then hold what forward passes compute with, in the dtype of the format's arithmetic; only those that
        engines hold in float32 too (`float32_weights`) stay float32. The other methods do nothing from then on.
        """
        assert not self._is_in, "the folded weights are in place"
        dtype, kept = getattr(torch, self._precision.arithmetic), float32_weights(self._model)
        for name, master in self._masters.items():  # an adapter has renamed some, so by object
            master.data = self._folded.pop(name)
        for name, parameter in self._model.named_parameters():
            if not parameter.requires_grad and name not in kept:
                parameter.data = parameter.data.to(dtype)
        self._masters = {}

    def describe(self) -> str:
        """Which weights are quantised, and the mean bits per weight of the whole policy, as one line for people."""
        return self._description

    def _described(self) -> str:
        number_format = self._precision
        total = sum(parameter.numel() for parameter in self._model.parameters())
        rest_bits = torch.finfo(getattr(torch, number_format.arithmetic)).bits
        if not self._masters:
            return f"precision {number_format.name}: {total / 1e6:,.1f} M weights, {rest_bits} bits each"
        num = sum(master.numel() for master in self._masters.values())
        bits = (num * number_format.bits + (total - num) * rest_bits) / total
        kinds = sorted({re.sub(r"\d+", "*", name) for name in self._masters})
        return (
            f"precision {number_format.name}: {num / total:.0%} of {total / 1e6:,.1f} M weights in"
            f" {number_format.codes} ({', '.join(kinds)}), the rest in {number_format.arithmetic}: {bits:.2f} bits a"
            f" weight; the engine computes with the codes' values in {number_format.arithmetic}"
        )


def quantised_names(model: nn.Module, precision: NumberFormat) -> tuple[str, ...]:
    """Names of the parameters that `precision` quantises: weights of linear layers, and stacked experts [E, N, K].

    Raises `PrecisionError` if one of them does not fit the format, or if none is left.
    """
    names = [name for name in _matrices(model) if not precision.keeps(name)]
    for name in names:
        try:
            weight = model.get_parameter(name)
            precision.check_shape(weight)
            precision.check_shape(local(weight))
        except PrecisionError as error:
            raise PrecisionError(f"{name}: {error}") from None
    if not names:
        raise PrecisionError(
            f"precision {precision.name} has nothing to quantise: precision.keep keeps every matrix of"
            f" {type(model).__name__}; remove a pattern"
        )
    return tuple(names)


def _matrices(model: nn.Module) -> list[str]:
    """A head that is tied to embeddings is none: checkpoints and engines hold it as embeddings only."""
    embeddings = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    convolutions = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    names = []
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(prefix, recurse=False):
            is_linear = isinstance(module, nn.Linear) and parameter.dim() == 2
            is_experts = not isinstance(module, convolutions) and parameter.dim() == 3
            if (is_linear or is_experts) and parameter not in embeddings:
                names.append(name)
    return names
