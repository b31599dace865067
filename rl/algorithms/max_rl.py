"""MaxRL: rare successes weigh more, as in maximum likelihood of success. https://arxiv.org/abs/2602.02710.

The gradient of log p (p: probability of success at a task) is that of p divided by p. With K successes among N rollouts
the mean of the successes' gradients estimates it up to order N in 1 - p; the mean over all rollouts is subtracted.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from rl.algorithms.advantages import group_advantages, is_degenerate
from rl.algorithms.algorithm import Advantages
from rl.algorithms.policy_gradient import PolicyGradient
from rl.data_types import Group


class MaxRl(PolicyGradient):
    """MaxRL: advantages (r - mean) / mean of the group's rewards; those below 0 count as 0."""

    algorithm: Literal["max_rl"] = "max_rl"
    """Name of the algorithm."""

    def compare(self, groups: Sequence[Group]) -> list[Advantages]:
        return [_by_mean(group) for group in groups]


def _by_mean(group: Group) -> Advantages:
    rollouts = [replace(one, reward=max(one.reward, 0.0)) if one.reward is not None else one for one in group.rollouts]
    group = replace(group, rollouts=tuple(rollouts))
    centred = group_advantages(group, "mean", False)
    if is_degenerate(group):
        return centred
    rewards = [one.reward for one in group.rollouts if one.outcome.counts and one.reward is not None]
    mean = sum(rewards) / len(rewards)
    return tuple(one if one is None else one / mean for one in centred)
