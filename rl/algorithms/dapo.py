"""DAPO: clipped objective with a higher upper clip, over all tokens of the step alike. https://arxiv.org/abs/2503.14476.

Its overlong filtering is `overlong_filtering`.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from rl.algorithms.advantages import group_advantages
from rl.algorithms.algorithm import Advantages
from rl.algorithms.policy_gradient import PolicyGradient, Positive
from rl.data_types import Group


class Dapo(PolicyGradient):
    """DAPO: advantages by the mean and the standard deviation of the group, and asymmetric clipping."""

    algorithm: Literal["dapo"] = "dapo"
    """Name of the algorithm."""
    clip_low: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Lower clip of PPO's ratio between learner and engine, 1 - clip_low."""
    clip_high: Positive = 0.28
    """Upper clip of PPO's ratio, 1 + clip_high: tokens of low probability may rise further than PPO lets them."""
    importance_weight_max: Positive | None = None
    """Upper bound on the ratio of tokens with a negative advantage (dual clipping); null is no bound."""
    overlong_filtering: bool = True
    """Rollouts whose last reply was cut at a limit of tokens get advantage 0. They count in the statistics of their
    group, and their tokens in the denominator of the loss."""

    def compare(self, groups: Sequence[Group]) -> list[Advantages]:
        return [group_advantages(group, "mean", True) for group in groups]

    @property
    def clips(self) -> tuple[float, float]:
        return self.clip_low, self.clip_high
