"""Which metrics does an evaluation have, per environment?

Rollouts of one task are not independent, so errors are those of the tasks: the cluster-robust standard error
(https://arxiv.org/abs/2411.00640, section 2.2), and a bootstrap that draws tasks with all their rollouts.
"""

import logging
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from math import comb

import numpy as np

from envs.facts import known_facts
from envs.results import is_full_reward
from envs.session import raised
from rl.algorithms.shaping.shaping import thinking_tokens
from rl.config.environments import option_set_names
from rl.data_types import Group, Outcome, Rollout

logger = logging.getLogger(__name__)
NUM_DRAWS = 2000
INTERVAL = (2.5, 97.5)
"""Percentiles: an interval of 95 %."""
ENDED = (Outcome.OK, Outcome.BUDGET_HIT)
"""Of rollouts whose last reply is whole."""


def evaluation_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """Metrics by environment: `reward/ENV` (mean), `stderr/ENV`, its 95 % interval `low/ENV` to `high/ENV`,
    `accuracy/ENV` and its standard error `accuracy_stderr/ENV`, `reply_tokens/ENV`, `thinking_tokens/ENV` (those of the
    reasoning, by its share of the characters), and the counts `num/ENV` and `failed/ENV`.

    Accuracy is the share of rewards at the top of the environment's `reward_range` (`envs.results.is_full_reward`).
    With several rollouts a task also `pass_at_K/ENV`, and `majority/ENV` if the environment reads answers
    (`TextEnv.answer_of`). Rollouts that do not count are left out and counted as `failed/ENV`. An environment whose
    tasks have several options has `accuracy/ENV/OPTIONS` for each too.
    """
    metrics: dict[str, float] = {}
    for env_id in dict.fromkeys(group.task.env_id for group in groups):
        own = [group for group in groups if group.task.env_id == env_id]
        metrics |= _of_environment(env_id, [group.rollouts for group in own])
        for name, alike in _by_options(own).items():
            found = _of_environment(env_id, [group.rollouts for group in alike]).get(f"accuracy/{env_id}")
            metrics |= {} if found is None else {f"accuracy/{env_id}/{name}": found}
    rewards_by_env = [value for name, value in metrics.items() if name.startswith("reward/")]
    if rewards_by_env:
        metrics["reward/mean"] = statistics.fmean(rewards_by_env)
    return metrics


def _of_environment(env_id: str, played: Sequence[Sequence[Rollout]]) -> dict[str, float]:
    tasks = [[rollout for rollout in rollouts if rollout.reward is not None] for rollouts in played]
    tasks = [rollouts for rollouts in tasks if rollouts]
    rewards = [[rollout.reward for rollout in rollouts if rollout.reward is not None] for rollouts in tasks]
    num = sum(map(len, rewards))
    metrics: dict[str, float] = {f"num/{env_id}": num, f"failed/{env_id}": sum(map(len, played)) - num}
    if not rewards:
        return metrics
    known = known_facts(env_id)
    correct = [[is_full_reward(reward, known.reward_range) for reward in own] for own in rewards]
    low, high = bootstrap_interval(rewards)
    metrics |= {
        f"reward/{env_id}": statistics.fmean(reward for own in rewards for reward in own),
        f"stderr/{env_id}": clustered_error(rewards),
        f"low/{env_id}": low,
        f"high/{env_id}": high,
        f"accuracy/{env_id}": statistics.fmean(one for own in correct for one in own),
        f"accuracy_stderr/{env_id}": clustered_error(correct),
        f"reply_tokens/{env_id}": statistics.fmean(one.num_reply_tokens for rollouts in tasks for one in rollouts),
        f"thinking_tokens/{env_id}": statistics.fmean(thinking_tokens(one) for rollouts in tasks for one in rollouts),
    }
    if (num_samples := max(map(len, correct))) > 1:
        sizes = [2**i for i in range(num_samples.bit_length()) if 2**i <= num_samples]
        metrics |= {f"pass_at_{k}/{env_id}": pass_at(k, correct) for k in sizes}
        metrics |= _majorities(env_id, tasks, correct, known.answer_of) if known.answer_of else {}
    return metrics


def _by_options(groups: Sequence[Group]) -> dict[str, list[Group]]:
    """The groups by what is different in their tasks' options; nothing if they are all equal."""
    found: dict[str, list[Group]] = defaultdict(list)
    for group, name in zip(groups, option_set_names([group.task.options for group in groups]), strict=True):
        found[name].append(group)
    return found if len(found) > 1 else {}


def clustered_error(rewards: Sequence[Sequence[float]]) -> float:
    """The standard error of the mean of all rewards, given by task; 0 for one task."""
    num, num_tasks = sum(map(len, rewards)), len(rewards)
    if num_tasks < 2:
        return 0.0
    mean = statistics.fmean(reward for own in rewards for reward in own)
    squares = sum(sum(reward - mean for reward in own) ** 2 for own in rewards)
    return (squares * num_tasks / (num_tasks - 1)) ** 0.5 / num


def bootstrap_interval(rewards: Sequence[Sequence[float]]) -> tuple[float, float]:
    """95 % interval of the mean of all rewards, given by task: percentiles of means over tasks drawn with replacement.
    The same rewards give the same interval.
    """
    sums, sizes = np.array([sum(own) for own in rewards]), np.array([len(own) for own in rewards])
    rng = np.random.default_rng(0)
    draws = (rng.integers(len(rewards), size=len(rewards)) for _ in range(NUM_DRAWS))
    low, high = np.percentile([sums[drawn].sum() / sizes[drawn].sum() for drawn in draws], INTERVAL)
    return float(low), float(high)


def pass_at(k: int, correct: Sequence[Sequence[bool]]) -> float:
    """Probability that one of k rollouts of a task is correct, over tasks: 1 - C(n - c, k) / C(n, k) of a task with c
    of n correct rollouts, which is unbiased (https://arxiv.org/abs/2107.03374, equation 1). Tasks with fewer than k
    rollouts are left out.
    """
    enough = [own for own in correct if len(own) >= k]
    return statistics.fmean(1.0 - comb(len(own) - sum(own), k) / comb(len(own), k) for own in enough)


def _majorities(
    env_id: str,
    tasks: Sequence[Sequence[Rollout]],
    correct: Sequence[Sequence[bool]],
    answer_of: Callable[[str], str | None],
) -> dict[str, float]:
    """`majority/ENV`, the mean over tasks; nothing if the environment's code fails to read an answer."""
    try:
        shares = [_majority(rollouts, own, answer_of) for rollouts, own in zip(tasks, correct, strict=True)]
    except Exception as error:
        logger.warning("%s: answer_of raised %s, so there is no majority/%s", env_id, raised(error), env_id)
        return {}
    return {f"majority/{env_id}": statistics.fmean(shares)}


def _majority(rollouts: Sequence[Rollout], correct: Sequence[bool], answer_of: Callable[[str], str | None]) -> float:
    """1 if most votes of a task are for the right answer, else 0; of answers with equally many votes, the mean.

    All correct replies are one answer, however they write it. Replies that were cut off or say no answer do not vote.
    """
    num_right, wrong = 0, Counter[str]()
    for rollout, is_correct in zip(rollouts, correct, strict=True):
        if is_correct:
            num_right += 1
        elif rollout.outcome in ENDED and (answer := answer_of(rollout.replies[-1].content)):
            wrong[answer] += 1
    most = max(num_right, *wrong.values(), 0)
    return float(num_right == most > 0) / (1 + sum(num == most for num in wrong.values()))
