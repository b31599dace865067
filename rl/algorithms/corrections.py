"""How are off-policy tokens corrected: tokens to which engine and learner give different probabilities?

Engine and learner compute the same policy with different kernels, and an asynchronous engine samples with older
weights. delta = learner logprob - engine logprob of the same token, in nats, measures both effects.
"""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rl.algorithms.kl import LOG_RATIO_MAX

if TYPE_CHECKING:
    from rl.algorithms.policy_gradient import Correction


class NonFiniteError(ValueError):
    """A logprob, a loss or a gradient is NaN or infinite."""


def check_finite(logprobs_BT: Tensor, mask_BT: Tensor, whose: str) -> None:
    """Raise `NonFiniteError` if a logprob inside the mask is NaN or infinite, before it can reach the weights."""
    broken_BT = mask_BT & ~logprobs_BT.isfinite()
    if broken_BT.any():
        row, column = broken_BT.nonzero()[0].tolist()
        raise NonFiniteError(
            f"{int(broken_BT.sum())} of {int(mask_BT.sum())} logprobs of the {whose} are not finite, the first in row"
            f" {row}, column {column}. Nothing was trained. Go on from the last checkpoint with --resume. If the error"
            " comes back, lower learner.learning_rate, and try precision float32 to rule out overflow"
        )


def sequence_mismatch(delta_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Mean exp|delta| over the tokens inside the mask, shape [B]; 1.0 is perfect agreement, and for empty rows."""
    ratio_BT = torch.where(mask_BT, delta_BT.abs().exp(), 0.0)
    num_tokens_B = mask_BT.sum(dim=-1)
    return torch.where(num_tokens_B > 0, ratio_BT.sum(dim=-1) / num_tokens_B.clamp(min=1), 1.0)


def keep_mask(delta_BT: Tensor, mask_BT: Tensor, mismatch_max: float) -> Tensor:
    """`mask_BT` without the rows whose `sequence_mismatch` is above the threshold.

    This is NeMo-RL's `seq_logprob_error_threshold` (NVIDIA-NeMo/RL, algorithms/grpo.py); Nemotron 3 used 2.
    """
    return mask_BT & (sequence_mismatch(delta_BT, mask_BT) <= mismatch_max)[:, None]


def weights_within(
    delta_BT: Tensor, mask_BT: Tensor, kind: "Correction", low: float, high: float | None
) -> tuple[Tensor, Tensor]:
    """Importance weights exp(delta) of tokens, without gradient, and the tokens that the bounds changed; both [B, T].

    - `truncate`: weights are clamped to [low, high]. Truncated importance sampling,
      https://fengyao.notion.site/off-policy-rl and Ionides 2008 (https://doi.org/10.1198/106186008X320456): the upper
      bound limits the variance at the price of a small bias.
    - `mask`: the weight of a token outside [low, high] is 0. IcePop, https://arxiv.org/abs/2510.18855.
    - `mask_sequence`: all weights of a sequence are 0 whose geometric mean exp(mean delta) is outside [low, high]; the
      others are as they are. NeMo RL's `seq-mask-tis` (NVIDIA-NeMo/RL, algorithms/loss/loss_functions.py).
    """
    delta_BT = delta_BT.detach()
    compared_BT = delta_BT
    if kind == "mask_sequence":
        num_tokens_B1 = mask_BT.sum(dim=-1, keepdim=True).clamp(min=1)
        compared_BT = torch.where(mask_BT, delta_BT, 0.0).sum(dim=-1, keepdim=True) / num_tokens_B1
    ratio_BT = compared_BT.clamp(max=LOG_RATIO_MAX).exp()
    outside_BT = (ratio_BT < low) | (ratio_BT > (math.inf if high is None else high))
    weights_BT = delta_BT.clamp(max=LOG_RATIO_MAX).exp()
    if kind == "truncate":
        return weights_BT.clamp(min=low, max=high), outside_BT & mask_BT
    return torch.where(outside_BT, 0.0, weights_BT), outside_BT & mask_BT


def total(values: Tensor) -> Tensor:
    """The sum as a float64 scalar on the CPU, without gradient."""
    return values.detach().sum(dtype=torch.float64).cpu()
