"""REINFORCE++ with a baseline: advantages by the mean of the group, normalised over the step.

https://arxiv.org/abs/2501.03262, equations 7 and 8. Division by the deviation of the whole step does not favour tasks
that are almost always or almost never solved, as that of the group does.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from rl.algorithms.advantages import EPSILON, group_advantages
from rl.algorithms.algorithm import Advantages
from rl.algorithms.kl import Estimator
from rl.algorithms.policy_gradient import PolicyGradient, Positive
from rl.data_types import Group


class ReinforcePlusPlus(PolicyGradient):
    """REINFORCE++: advantages by the mean of the group, normalised over all rollouts of the step, and PPO's clip."""

    algorithm: Literal["reinforce++"] = "reinforce++"
    """Name of the algorithm."""
    clip_low: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Lower clip of PPO's ratio between learner and engine, 1 - clip_low."""
    clip_high: Positive = 0.2
    """Upper clip of PPO's ratio, 1 + clip_high."""
    importance_weight_max: Positive | None = None
    """Upper bound on the ratio of tokens with a negative advantage (dual clipping); null is no bound."""
    reference_kl_estimator: Estimator = "k2"
    """Estimate of the divergence: k1 is -log r, k2 is (log r)^2 / 2, k3 is r - 1 - log r."""

    def compare(self, groups: Sequence[Group]) -> list[Advantages]:
        """The environments that this algorithm trains are normalised together. Groups without a learning signal stay
        at 0 and count, as in the paper, in the deviation.
        """
        centred = [group_advantages(group, "mean", False) for group in groups]
        values = [one for own in centred for one in own if one is not None]
        if not values:
            return centred
        # Each group's advantages add up to 0, so their mean over the step is 0 too.
        deviation = math.sqrt(math.fsum(one * one for one in values) / len(values)) + EPSILON
        return [tuple(one if one is None else one / deviation for one in own) for own in centred]

    @property
    def clips(self) -> tuple[float, float]:
        return self.clip_low, self.clip_high
