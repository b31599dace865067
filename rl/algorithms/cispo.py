"""CISPO: importance weights are bounded, and no token loses its gradient. https://arxiv.org/abs/2506.13585, equation 4.

The objective is sg(min(w, w_max)) * A * l: the surrogate with truncated weights. It differs from `grpo` without
clipping in the bound and in the statistics of the group.
"""

from collections.abc import Sequence
from typing import Literal

from rl.algorithms.advantages import group_advantages
from rl.algorithms.algorithm import Advantages
from rl.algorithms.policy_gradient import PolicyGradient, Positive
from rl.data_types import Group


class Cispo(PolicyGradient):
    """CISPO: advantages by the mean and the standard deviation of the group, and truncated importance weights."""

    algorithm: Literal["cispo"] = "cispo"
    """Name of the algorithm."""
    importance_weight_max: Positive | None = 5.0
    """Upper bound on the importance weight; the value is that of ScaleRL, https://arxiv.org/abs/2510.13786."""

    def compare(self, groups: Sequence[Group]) -> list[Advantages]:
        return [group_advantages(group, "mean", True) for group in groups]
