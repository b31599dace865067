"""How are group advantages computed: how much better was each rollout than the others of its group?

Statistics cover only the rollouts of one group whose outcome counts. The group object defines the group, never list
positions or equal prompts.

Sources: GRPO, https://arxiv.org/abs/2402.03300 (mean baseline, division by the standard deviation); RLOO,
https://arxiv.org/abs/2402.14740 (leave-one-out baseline); Dr. GRPO, https://arxiv.org/abs/2503.20783 (the division
weights tasks by their difficulty, so it is off by default).
"""

import math
import statistics
from collections.abc import Sequence
from typing import Literal

from rl.data_types import Group

EPSILON = 1e-6
"""Added to the standard deviation, so that rewards that differ only by rounding do not give large advantages."""


class RewardError(ValueError):
    """A rollout whose outcome counts has no finite reward."""


Baseline = Literal["leave_one_out", "mean"]
Scale = bool | Literal["leave_one_out"]


def group_advantages(group: Group, baseline: Baseline, scale_by_std: Scale) -> tuple[float | None, ...]:
    """One advantage per rollout, in the group's order; None for rollouts that do not count.

    In a degenerate group (fewer than two rollouts count, or all their rewards are equal) each rollout that counts gets
    0.0. `leave_one_out` compares a reward with the mean of the other valid rewards, `mean` with the mean of all valid
    rewards. With `scale_by_std` the difference is divided by the sample standard deviation (n - 1) of the valid rewards
    plus `EPSILON`; with `leave_one_out` by that of the other valid rewards (n - 2), if it is not 0, as in NeMo RL
    (algorithms/advantage_estimator.py).

    Raises `RewardError` if a rollout that counts has no finite reward.
    """
    rewards = _valid_rewards(group)
    valid = [reward for reward in rewards if reward is not None]
    if is_degenerate(group):
        return tuple(None if reward is None else 0.0 for reward in rewards)
    mean = math.fsum(valid) / len(valid)
    # r_i - mean of the others == n / (n - 1) * (r_i - mean of all)
    scale = len(valid) / (len(valid) - 1) if baseline == "leave_one_out" else 1.0
    if scale_by_std is True:
        scale /= statistics.stdev(valid) + EPSILON
    advantages = [None if reward is None else scale * (reward - mean) for reward in rewards]
    if scale_by_std == "leave_one_out":
        return tuple(one if one is None else one / _divisor(rewards, i) for i, one in enumerate(advantages))
    return tuple(advantages)


def _divisor(rewards: Sequence[float | None], left_out: int) -> float:
    """The sample standard deviation of the other rewards; 1 if there are fewer than two or they differ by rounding."""
    others = [reward for i, reward in enumerate(rewards) if i != left_out and reward is not None]
    deviation = statistics.stdev(others) if len(others) > 1 else 0.0
    return deviation + EPSILON if deviation > EPSILON else 1.0


def is_degenerate(group: Group) -> bool:
    """Whether the group has no learning signal: fewer than two rollouts count, or all their rewards are equal."""
    rewards = [one.reward for one in group.rollouts if one.outcome.counts and one.reward is not None]
    return len(rewards) < 2 or max(rewards) == min(rewards)


def _valid_rewards(group: Group) -> list[float | None]:
    """The rewards in the group's order, None where the outcome does not count."""
    rewards: list[float | None] = []
    for rollout in group.rollouts:
        if not rollout.outcome.counts:
            rewards.append(None)
        elif rollout.reward is None or not math.isfinite(rollout.reward):
            raise RewardError(
                f"environment {group.task.env_id!r}, task {group.task.ordinal}, rollout {rollout.member} of group"
                f" {group.group_id!r}: outcome {rollout.outcome.value!r} counts, but the reward is {rollout.reward}."
                " The environment must return a finite reward, or fail so that the rollout is masked"
            )
        else:
            rewards.append(rollout.reward)
    return rewards
