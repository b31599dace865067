"""Which metrics does an evaluation have, per environment?"""

import statistics
from collections.abc import Sequence

from envs.facts import reward_range_of
from envs.results import is_full_reward
from rl.data_types import Group


def evaluation_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """Mean reward, its standard error, accuracy, reply tokens and counts by environment.

    Accuracy is the share of rewards at the top of the environment's `reward_range` (`envs.results.is_full_reward`).
    Rollouts that do not count are left out and counted as `failed/ENV`.
    """
    metrics: dict[str, float] = {}
    for env_id in dict.fromkeys(group.task.env_id for group in groups):
        rollouts = [rollout for group in groups if group.task.env_id == env_id for rollout in group.rollouts]
        valid = [rollout for rollout in rollouts if rollout.reward is not None]
        rewards = [rollout.reward for rollout in valid if rollout.reward is not None]
        metrics[f"num/{env_id}"] = len(rewards)
        metrics[f"failed/{env_id}"] = len(rollouts) - len(rewards)
        if not rewards:
            continue
        reward_range = reward_range_of(env_id)
        metrics[f"reward/{env_id}"] = statistics.fmean(rewards)
        metrics[f"stderr/{env_id}"] = statistics.stdev(rewards) / len(rewards) ** 0.5 if len(rewards) > 1 else 0.0
        metrics[f"accuracy/{env_id}"] = statistics.fmean(is_full_reward(reward, reward_range) for reward in rewards)
        metrics[f"reply_tokens/{env_id}"] = statistics.fmean(rollout.num_reply_tokens for rollout in valid)
    rewards_by_env = [value for name, value in metrics.items() if name.startswith("reward/")]
    if rewards_by_env:
        metrics["reward/mean"] = statistics.fmean(rewards_by_env)
    return metrics
