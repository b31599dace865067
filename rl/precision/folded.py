"""Which weights of a policy are quantised, and what are they folded to?

`FoldedWeights` is the straight-through fake quantiser of a whole model: forward and backward passes see the folded
(quantised and dequantised) weights, the gradient goes unchanged to the float32 master weights. Folding happens once
after each optimiser step, not in every pass (Courbariaux et al. 2015, https://arxiv.org/abs/1511.00363).
"""

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch

import torch
from torch import Tensor, nn

from rl.config.experiment import PrecisionConfig
from rl.precision.nvfp4 import BLOCK, PrecisionError, Quantised, amax, check_shape, dequantise, quantise

FUSED = ((re.compile(r"\b[qkv]_proj\b"), "qkv_proj"), (re.compile(r"\b(gate|up)_proj\b"), "gate_up_proj"))
"""Matrices that engines fuse into one, and so must share one tensor scale."""
BITS = {"float32": 32.0, "bfloat16": 16.0}
NVFP4_BITS = 4 + 8 / BLOCK


class FoldedWeights:
    """The quantised weights of a model whose parameters are the float32 master weights.

    With a format that does not quantise, there are none and everything here does nothing. Raises `PrecisionError` where
    a weight does not fit the format, or where nothing is left to quantise.
    """

    def __init__(self, model: nn.Module, precision: PrecisionConfig) -> None:
        self._precision = precision
        self._model = model
        names = quantised_names(model, precision) if precision.is_quantised else ()
        self._masters = {name: model.get_parameter(name) for name in names}
        self._quantised: dict[str, Quantised] = {}
        self._folded: dict[str, Tensor] = {}
        self._is_in = False
        self.refresh()

    @property
    def quantised(self) -> Mapping[str, Quantised]:
        """By parameter name: what the master weights were quantised to when they were last folded."""
        return self._quantised

    def refresh(self) -> float:
        """Fold the master weights as they are now; returns the share of codes that differ from the last time's."""
        assert not self._is_in, "the parameters hold folded weights, not the masters"
        before, num_changed, num_codes = self._quantised, 0, 0
        largest = shared_amax(self._masters)
        self._quantised = {
            name: quantise(master, self._precision, shared_amax=largest[name]) for name, master in self._masters.items()
        }
        self._folded = {name: dequantise(quantised) for name, quantised in self._quantised.items()}
        for name, old in before.items():
            differs = old.packed ^ self._quantised[name].packed
            num_changed += int(((differs & 0xF) != 0).sum() + ((differs >> 4) != 0).sum())
            num_codes += 2 * differs.numel()
        return num_changed / max(1, num_codes)

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
        """Enter `in_place`, for callers whose inside is not one block of code."""
        assert not self._is_in, "the folded weights are in place already; a second swap would train on the masters"
        self._swap()

    def take_out(self) -> None:
        """Leave `in_place`."""
        assert self._is_in, "the masters are in place already"
        self._swap()

    def _swap(self) -> None:
        self._is_in = not self._is_in
        for name, master in self._masters.items():
            self._folded[name], master.data = master.data, self._folded[name]

    def describe(self) -> str:
        """Which weights are quantised, and the bits a weight over the whole policy, as one line for people."""
        total = sum(parameter.numel() for parameter in self._model.parameters())
        rest_bits = BITS[self._precision.arithmetic]
        if not self._masters:
            return f"precision {self._precision.format}: {total / 1e6:,.1f} M weights, {rest_bits:g} bits each"
        num = sum(master.numel() for master in self._masters.values())
        bits = (num * NVFP4_BITS + (total - num) * rest_bits) / total
        kinds = sorted({re.sub(r"\d+", "*", name) for name in self._masters})
        return (
            f"precision nvfp4: {num / total:.0%} of {total / 1e6:,.1f} M weights in 4-bit codes ({', '.join(kinds)}),"
            f" the rest in {self._precision.arithmetic}: {bits:.2f} bits a weight; the engine computes with the codes'"
            f" values in {self._precision.arithmetic}"
        )


def quantised_names(model: nn.Module, precision: PrecisionConfig) -> tuple[str, ...]:
    """Names of the parameters that `precision` quantises: weights of linear layers, and stacked experts [E, N, K].

    Raises `PrecisionError` where one of them has no blocks of 16, or where none is left.
    """
    names = [name for name in _matrices(model) if not any(fnmatch(name, pattern) for pattern in precision.keep)]
    for name in names:
        try:
            check_shape(model.get_parameter(name), precision)
        except PrecisionError as error:
            raise PrecisionError(f"{name}: {error}") from None
    if not names:
        raise PrecisionError(
            f"precision nvfp4 has nothing to quantise: precision.keep ({', '.join(precision.keep)}) keeps every matrix"
            f" of {type(model).__name__}; take a pattern out"
        )
    return tuple(names)


def shared_amax(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Largest magnitude of each weight's matrices; matrices that engines fuse have the largest of all of them."""
    own = {name: amax(weight) for name, weight in weights.items()}
    groups: dict[str, list[str]] = {}
    for name in weights:
        groups.setdefault(_fused_name(name), []).append(name)
    return {name: _largest([own[other] for other in groups[_fused_name(name)]]) for name in weights}


def _largest(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(tuple(values)).amax(dim=0)


def _fused_name(name: str) -> str:
    for pattern, fused in FUSED:
        name = pattern.sub(fused, name)
    return name


def _matrices(model: nn.Module) -> list[str]:
    convolutions = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    names = []
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(prefix, recurse=False):
            is_linear = isinstance(module, nn.Linear) and parameter.dim() == 2
            is_experts = not isinstance(module, convolutions) and parameter.dim() == 3
            if is_linear or is_experts:
                names.append(name)
    return names
