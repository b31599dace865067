"""What is the largest magnitude (amax) of each matrix, and which matrices must share one?"""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rl.precision.number_format import PrecisionError

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
