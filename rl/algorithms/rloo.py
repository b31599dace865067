"""RLOO: REINFORCE with the mean reward of the other rollouts as baseline. https://arxiv.org/abs/2402.14740.

The KL penalty belongs to the reward; here each token gets that of itself and of the tokens after it, which has the same
expected gradient as that of the whole sequence. It has no baseline.
"""

from collections.abc import Sequence
from typing import Literal

from rl.algorithms.advantages import group_advantages
from rl.algorithms.algorithm import Advantages
from rl.algorithms.kl import Estimator
from rl.algorithms.policy_gradient import PolicyGradient
from rl.data_types import Group


class Rloo(PolicyGradient):
    """RLOO: leave-one-out advantages, no clipping, and the KL penalty in the reward."""

    algorithm: Literal["rloo"] = "rloo"
    """Name of the algorithm."""
    reference_kl_estimator: Estimator = "k1"
    """Estimate of the divergence: k1 is -log r, k2 is (log r)^2 / 2, k3 is r - 1 - log r."""
    reference_kl_in: Literal["loss", "reward"] = "reward"
    """Where the penalty is: a term of the loss, or subtracted from each token's advantage, with that of all tokens
    after it."""

    def compare(self, groups: Sequence[Group]) -> list[Advantages]:
        return [group_advantages(group, "leave_one_out", False) for group in groups]
