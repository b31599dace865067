"""What is the largest magnitude (amax) of each matrix, and which matrices must share one?"""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rl.precision.number_format import PrecisionError
from rl.ranks import ALONE, Ranks

FUSED = ((re.compile(r"\b[qkv]_proj\b"), "qkv_proj"), (re.compile(r"\b(gate|up)_proj\b"), "gate_up_proj"))
"""Matrices that engines fuse into one, and so must share one scale."""


def amax(x: Tensor) -> Tensor:
    """Largest magnitude of each matrix of `x` [..., N, K], float32 [...].

    Raises `PrecisionError` for NaN and infinities, which quantised formats do not have.
    """
    largest = x.detach().abs().amax(dim=(-2, -1)).float()
    if not torch.isfinite(largest).all():
        raise PrecisionError(f"a tensor of shape {tuple(x.shape)} has NaN or infinite values, which no code represents")
    return largest


def shared_amax(weights: Mapping[str, Tensor], ranks: Ranks = ALONE) -> dict[str, Tensor]:
    """Largest magnitude of each weight's matrices; matrices that engines fuse have the largest of all of them.

    The weights may be the slices of one rank: rows of matrices, or whole experts of a stack.
    """
    own = {name: amax(weight) for name, weight in weights.items()} if ranks.num == 1 else _amax_over(weights, ranks)
    groups: dict[str, list[str]] = {}
    for name in weights:
        groups.setdefault(_fused_name(name), []).append(name)
    return {name: _largest([own[other] for other in groups[_fused_name(name)]]) for name in weights}


def _amax_over(weights: Mapping[str, Tensor], ranks: Ranks) -> dict[str, Tensor]:
    """As `amax`, where other ranks have the other slices. All exchanges are one; errors are raised by all ranks."""
    own = {name: _amax_of_slice(weight) for name, weight in weights.items()}
    matrices = [name for name, weight in weights.items() if weight.dim() == 2]
    experts = [own[name].max() for name, weight in weights.items() if weight.dim() > 2 and len(weight)]
    worst = torch.stack(experts).max() if experts else torch.zeros_like(next(iter(own.values())).sum())
    exchanged = torch.stack([*(own[name] for name in matrices), worst]).nan_to_num(nan=torch.inf)
    ranks.largest(exchanged)
    if not torch.isfinite(exchanged).all():
        raise PrecisionError("a weight has NaN or infinite values, which no code represents")
    return own | dict(zip(matrices, exchanged, strict=False))


def _amax_of_slice(x: Tensor) -> Tensor:
    if not x.numel():  # a rank may have no row of a small matrix
        return torch.zeros(x.shape[:-2], dtype=torch.float32, device=x.device)
    return x.detach().abs().amax(dim=(-2, -1)).float()


def _largest(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(tuple(values)).amax(dim=0)


def _fused_name(name: str) -> str:
    for pattern, fused in FUSED:
        name = pattern.sub(fused, name)
    return name
