"""How much better was each rollout than the others of its group?

Statistics are over the rollouts of one group whose outcome counts, and over nothing else: what belongs together is said
by the group object, never by places in a list or by equal prompts.

Sources: GRPO, https://arxiv.org/abs/2402.03300 (mean baseline, division by the standard deviation); RLOO,
https://arxiv.org/abs/2402.14740 (leave-one-out baseline); Dr. GRPO, https://arxiv.org/abs/2503.20783 (why the division
is off by default: it weighs tasks by their difficulty).
"""

import math
import statistics
from typing import Literal

from rl.data_types import Group

EPSILON = 1e-6
"""Added to the standard deviation, so that rewards that differ by rounding only do not become large advantages."""


class RewardError(ValueError):
    """A rollout whose outcome counts has no finite reward."""


def group_advantages(
    group: Group, baseline: Literal["leave_one_out", "mean"], scale_by_std: bool
) -> tuple[float | None, ...]:
    """One advantage a rollout, in the group's order; None for rollouts that do not count.

    A degenerate group (fewer than two rollouts count, or all their rewards are equal) gives 0.0 for each rollout that
    counts. With `leave_one_out` a reward is compared with the mean of the other valid ones, with `mean` with the mean
    of all valid ones. With `scale_by_std` the difference is divided by the sample standard deviation (n - 1) of the
    valid rewards plus `EPSILON`.

    Raises `RewardError` where a valid rollout has no finite reward.
    """
    rewards = _valid_rewards(group)
    valid = [reward for reward in rewards if reward is not None]
    if is_degenerate(group):
        return tuple(None if reward is None else 0.0 for reward in rewards)
    mean = math.fsum(valid) / len(valid)
    # r_i - mean of the others == n / (n - 1) * (r_i - mean of all)
    scale = len(valid) / (len(valid) - 1) if baseline == "leave_one_out" else 1.0
    if scale_by_std:
        scale /= statistics.stdev(valid) + EPSILON
    return tuple(None if reward is None else scale * (reward - mean) for reward in rewards)


def is_degenerate(group: Group) -> bool:
    """Whether the group teaches nothing: fewer than two rollouts count, or all their rewards are equal."""
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
