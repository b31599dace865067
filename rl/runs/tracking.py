"""Which metrics does a training step have?

Names of a step's metrics; ENV is an environment's id, such as `reward/math/Arithmetic-v0`:

    reward, reward/ENV              mean over rollouts that count
    reward_part/ENV/PART            mean of each part of the reward, over rollouts that have it
    outcome/OUTCOME, outcome/ENV/OUTCOME    rollouts by outcome
    masked_rows                     share of rollouts that do not count
    groups                          groups of the step, those included that leave it for want of a signal
    degenerate_groups, degenerate_groups/ENV    groups without a signal: fewer than 2 rows that count, or equal rewards
                                    (before `environments.ENV.shaping`)
    shaping/ENV                     what shapings add to the reward of a rollout, on average
    reply_tokens/ENV, reply_tokens_max/ENV  tokens of all replies of a rollout, forced tokens included
    reward_by_budget/ENV/BUDGET, reply_tokens_by_budget/ENV/BUDGET    the same of tasks with this thinking budget or
                                    effort, if the environment's tasks of the step do not all have `unlimited`
    forced_tokens/ENV               tokens per rollout that the thinking budget forced
    turns/ENV, malformed_calls/ENV  mean per rollout; malformed_calls/ENV/KIND by the kind of fault
    budget_violations               rollouts in which the engine violated the budget; must be 0
    staleness, staleness_max        updates between sampling and training, over sampled tokens
    staleness_share/AGE             share of the sampled tokens of this age
    groups_in_flight                when the groups of the next step are collected (`rl.rollouts.admission`)
    tokens_per_s/sampled            sampled tokens of the step per second in which an engine works, all engines together
    tokens_per_s/trained            tokens of the step's rows, prompts included, per second of the update
    tokens_per_s/step               sampled tokens per second of all phases of the step
    seconds, seconds/PHASE, share/PHASE     of the step
    working/engines, working/learner, working/both, working/neither     shares of the step in which only engines, only
                                    the learner, both and neither work; means over engines (`rl.runs.step_times`)
    memory_mib/driver, memory_mib/learner, memory_mib/engine, memory_mib/learner/PART    memory of processes, of the
                                    learner's by part (`rl.runs.memory`)
    update/FIELD                    every field of `rl.data_types.Update`, such as mismatch (of fresh tokens)
    update/MEASURE                  measures of the algorithms, such as clip_fraction (`rl/algorithms/`), and of
                                    replayed experts (`rl.learner.replay.RouteReplay.measures`)
    curriculum/ENV/pass_rate        mean pass rate of the step's tasks before the step, of those that had one
    curriculum/ENV/unknown          share of them that had none; with `curriculum.measured`, as the next
    curriculum/ENV/solved           tasks, or sets of options, that are solved after the step
    curriculum/ENV/share/OPTIONS, curriculum/ENV/pass_rate/OPTIONS    by set of options: its share of the step's tasks,
                                    and its pass rate after the step
    canary/NAME                     value of a canary over its window, once there are as many steps (`rl.runs.canaries`)
    canary/NAME/level               what it does about the value: 0 nothing, 1 warns, 2 pauses
    canary/NAME/masked_groups       groups of the step that it masked, if it may mask
    canary/not_finite               updates that were refused since the step before, their groups masked
"""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean

import numpy as np

from rl.algorithms.advantages import is_degenerate
from rl.data_types import Group, Outcome, Rollout, Update


def step_metrics(
    groups: Sequence[Group], update: Update, seconds_by_phase: Mapping[str, float], overlap: Mapping[str, float]
) -> dict[str, float]:
    """The metrics of one training step, by the names in this module's docstring. `overlap` is that of `StepTimes`."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    metrics = rollout_metrics(groups)
    metrics |= _staleness(rollouts, update.policy_version - 1)
    metrics |= _time_metrics(rollouts, update, seconds_by_phase, overlap)
    return metrics | _update_metrics(update)


def rollout_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """Those of them that only need the rollouts: rewards, outcomes, lengths."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    metrics = _outcome_metrics(rollouts, "")
    metrics["masked_rows"] = sum(not rollout.outcome.counts for rollout in rollouts) / max(1, len(rollouts))
    rewards = [rollout.reward for rollout in rollouts if rollout.reward is not None]
    if rewards:
        metrics["reward"] = fmean(rewards)
    metrics["budget_violations"] = sum(bool(rollout.budget_violation) for rollout in rollouts)
    metrics["degenerate_groups"] = sum(is_degenerate(group) for group in groups)
    for env_id in sorted({group.task.env_id for group in groups}):
        metrics |= _environment_metrics(env_id, [group for group in groups if group.task.env_id == env_id])
    return metrics


def _update_metrics(update: Update) -> dict[str, float]:
    names = [field.name for field in dataclasses.fields(update) if field.name != "measures"]
    values = {**{name: getattr(update, name) for name in names}, **update.measures}
    return {f"update/{name}": value for name, value in values.items() if value is not None}


def _outcome_metrics(rollouts: Sequence[Rollout], prefix: str) -> dict[str, float]:
    counts = Counter(rollout.outcome for rollout in rollouts)
    return {f"outcome/{prefix}{outcome}": counts[outcome] for outcome in Outcome}


def _environment_metrics(env_id: str, groups: Sequence[Group]) -> dict[str, float]:
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    counted = [rollout for rollout in rollouts if rollout.outcome.counts]
    metrics = _outcome_metrics(rollouts, f"{env_id}/")
    metrics[f"degenerate_groups/{env_id}"] = sum(is_degenerate(group) for group in groups)
    if not counted:
        return metrics
    metrics[f"reward/{env_id}"] = fmean(rollout.reward for rollout in counted if rollout.reward is not None)
    metrics |= _by_budget(env_id, counted)
    parts: dict[str, list[float]] = defaultdict(list)
    for rollout in counted:
        for part, value in rollout.reward_parts.items():
            parts[part].append(value)
    metrics |= {f"reward_part/{env_id}/{part}": fmean(values) for part, values in sorted(parts.items())}
    lengths = [rollout.num_reply_tokens for rollout in counted]
    metrics[f"reply_tokens/{env_id}"] = fmean(lengths)
    metrics[f"reply_tokens_max/{env_id}"] = max(lengths)
    metrics[f"forced_tokens/{env_id}"] = fmean(sum(turn.num_forced for turn in rollout.turns) for rollout in counted)
    metrics[f"turns/{env_id}"] = fmean(len(rollout.turns) for rollout in counted)
    malformed = sum((Counter(rollout.malformed_calls) for rollout in counted), Counter[str]())
    metrics[f"malformed_calls/{env_id}"] = malformed.total() / len(counted)
    metrics |= {f"malformed_calls/{env_id}/{kind}": num / len(counted) for kind, num in sorted(malformed.items())}
    return metrics


def _by_budget(env_id: str, counted: Sequence[Rollout]) -> dict[str, float]:
    """Of the rollouts that count, which are those of one environment."""
    by_budget: dict[str, list[Rollout]] = defaultdict(list)
    for rollout in counted:
        by_budget[str(rollout.task.budget)].append(rollout)
    if set(by_budget) == {"unlimited"}:
        return {}
    metrics: dict[str, float] = {}
    for budget, own in sorted(by_budget.items()):
        metrics[f"reward_by_budget/{env_id}/{budget}"] = fmean(one.reward for one in own if one.reward is not None)
        metrics[f"reply_tokens_by_budget/{env_id}/{budget}"] = fmean(one.num_reply_tokens for one in own)
    return metrics


def _staleness(rollouts: Sequence[Rollout], trained_version: int) -> dict[str, float]:
    """Updates between the version that sampled a token and the version that was trained on it."""
    ages: Counter[int] = Counter()
    replies = [turn.reply for rollout in rollouts if rollout.outcome.counts for turn in rollout.turns]
    for reply in replies:
        versions = reply.columns["version"][reply.sampled]
        if len(versions) and versions[0] == versions[-1]:  # they only grow; most replies have one
            ages[trained_version - int(versions[0])] += len(versions)
            continue
        versions, counts = np.unique(versions, return_counts=True)
        ages.update(dict(zip((trained_version - versions).tolist(), counts.tolist(), strict=True)))
    num_tokens = sum(ages.values())
    if not num_tokens:
        return {}
    metrics = {"staleness": sum(age * num for age, num in ages.items()) / num_tokens, "staleness_max": max(ages)}
    return metrics | {f"staleness_share/{age}": num / num_tokens for age, num in sorted(ages.items())}


def _time_metrics(
    rollouts: Sequence[Rollout], update: Update, seconds: Mapping[str, float], overlap: Mapping[str, float]
) -> dict[str, float]:
    total = sum(seconds.values())
    engine_s = total * (overlap.get("engines", 0.0) + overlap.get("both", 0.0))
    num_sampled = sum(len(turn.reply) - turn.num_forced for rollout in rollouts for turn in rollout.turns)
    metrics = {"seconds": total, **{f"working/{which}": share for which, share in overlap.items()}}
    for phase, value in seconds.items():
        metrics[f"seconds/{phase}"] = value
        metrics[f"share/{phase}"] = value / total if total else 0.0
    for name, num, duration in (
        ("sampled", num_sampled, engine_s),
        ("trained", update.num_row_tokens, update.seconds),
        ("step", num_sampled, total),
    ):
        if duration > 0:
            metrics[f"tokens_per_s/{name}"] = num / duration
    return metrics
