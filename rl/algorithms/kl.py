"""How far is the policy from the one that training started from, by one sampled token?

log r = log p_reference(token) - log p_policy(token), in nats. All three estimate KL(policy || reference) of tokens that
the policy sampled. Source: http://joschu.net/blog/kl-approx.html; which of them has the right gradient where:
https://arxiv.org/abs/2506.09477.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

LOG_RATIO_MAX = 20.0
"""Nats; exp of it is 4.9e8, and exp of 89 is above what float32 holds."""

Estimator = Literal["k1", "k2", "k3"]


def k1(log_ratio: "Tensor") -> "Tensor":
    """-log r: unbiased, often negative. As a loss its gradient is 0 on average: it belongs in rewards."""
    return -log_ratio.clamp(-LOG_RATIO_MAX, LOG_RATIO_MAX)


def k2(log_ratio: "Tensor") -> "Tensor":
    """(log r)^2 / 2: as a loss of on-policy tokens its gradient is that of the KL divergence."""
    return log_ratio.clamp(-LOG_RATIO_MAX, LOG_RATIO_MAX).square() / 2.0


def k3(log_ratio: "Tensor") -> "Tensor":
    """r - 1 - log r: unbiased, never negative.

    As in verl (`kl_penalty` in trainer/ppo/core_algos.py) the log ratio is clamped at 20 nats, so that one token cannot
    make the estimate infinite; above the clamp it has no gradient. Unlike verl, this function has no lower clamp,
    because nothing overflows there, and no clamp of the estimate at 10, which would remove the gradient of all tokens
    above 2.6 nats.
    """
    log_ratio = log_ratio.clamp(max=LOG_RATIO_MAX)
    return log_ratio.exp() - 1.0 - log_ratio


ESTIMATORS: dict[Estimator, Callable[["Tensor"], "Tensor"]] = {"k1": k1, "k2": k2, "k3": k3}


def still_to_come(values_BT: "Tensor") -> "Tensor":
    """The sum of each token's value and those of all tokens after it: what a token's choice can still change."""
    return values_BT.flip(-1).cumsum(-1).flip(-1)
