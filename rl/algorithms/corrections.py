"""How are off-policy tokens corrected: tokens to which engine and learner give different probabilities?

Engine and learner compute the same policy with different kernels, and an asynchronous engine samples with older
weights. delta = learner logprob - engine logprob of the same token, in nats, measures both effects.
"""

import torch
from torch import Tensor


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


def truncated_weights(delta_BT: Tensor, weight_max: float) -> Tensor:
    """Importance weights min(exp(delta), weight_max), without gradient.

    Truncated importance sampling, https://fengyao.notion.site/off-policy-rl and Ionides 2008
    (https://doi.org/10.1198/106186008X320456): the truncation bounds the variance at the price of a small bias.
    """
    return delta_BT.detach().exp().clamp(max=weight_max)


LOG_RATIO_MAX = 20.0
"""Nats; exp of it is 4.9e8, and exp of 89 is above what float32 holds."""


def total(values: Tensor) -> Tensor:
    """The sum as a float64 scalar on the CPU, without gradient."""
    return values.detach().sum(dtype=torch.float64).cpu()


def k3(log_ratio: Tensor) -> Tensor:
    """Schulman's k3 estimate of KL(q || p) from samples of q: r - 1 - log r with log r = log p - log q; never negative.

    http://joschu.net/blog/kl-approx.html. As in verl (`kl_penalty` in trainer/ppo/core_algos.py) the log ratio is
    clamped at 20 nats, so that one token cannot make the estimate infinite; above the clamp it has no gradient. Unlike
    verl, this function has no lower clamp, because nothing overflows there, and no clamp of the estimate at 10, which
    would remove the gradient of all tokens above 2.6 nats.
    """
    log_ratio = log_ratio.clamp(max=LOG_RATIO_MAX)
    return log_ratio.exp() - 1.0 - log_ratio
