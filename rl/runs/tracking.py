"""What is written down about a run while it runs: metrics, TensorBoard, rollouts?

Names of a step's metrics; ENV is an environment's id, such as `reward/math/Arithmetic-v0`:

    reward, reward/ENV              mean over rollouts that count
    reward_part/ENV/PART            mean of each part of the reward, over rollouts that have it
    outcome/OUTCOME, outcome/ENV/OUTCOME    rollouts by outcome
    masked_rows                     share of rollouts that do not count
    degenerate_groups, degenerate_groups/ENV    groups without a signal: fewer than 2 rows that count, or equal rewards
    reply_tokens/ENV, reply_tokens_max/ENV  tokens of all replies of a rollout, forced ones included
    forced_tokens/ENV               tokens a rollout that the thinking budget forced
    turns/ENV, malformed_calls/ENV  mean a rollout
    budget_violations               rollouts in which the engine did not keep the budget; must be 0
    staleness, staleness_max        updates between sampling and training, over sampled tokens
    tokens_per_s/sampled            sampled tokens of the step by the seconds of phase `collect`
    tokens_per_s/trained            tokens through the model by the seconds of the update
    tokens_per_s/step               sampled tokens by the seconds of all phases of the step
    seconds, seconds/PHASE, share/PHASE     of the step
    update/FIELD                    every field of `rl.data_types.Update`
    update/MEASURE                  what the algorithms measure, such as clip_fraction (`rl/algorithms/`)
"""

import dataclasses
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean
from types import TracebackType

import numpy as np
from tensorboard.summary import Writer

from envs.json_lines import read_lines
from rl.algorithms.advantages import is_degenerate
from rl.data_types import Group, Outcome, Rollout, Update
from rl.runs.files import append_line
from rl.runs.folder import Kind, RunFolder
from rl.runs.saved_rollouts import write_rollouts

NOT_METRICS = ("kind", "step", "time", "label")


class Tracker:
    """Writes one run's metrics and rollouts; a context manager.

    TensorBoard's files are made anew from `metrics.jsonl` when a run is resumed, so that both always say the same.
    """

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        self._saved: set[tuple[Kind, int]] = set()
        run.rollouts.mkdir(parents=True, exist_ok=True)
        run.tensorboard.mkdir(parents=True, exist_ok=True)
        for old in run.tensorboard.glob("events.*"):
            old.unlink()
        lines = list(read_lines(run.metrics_file))
        self._evaluations = {(line["label"], line["step"]) for line in lines if line["kind"] == "evaluation"}
        self._writer = Writer(str(run.tensorboard))
        for line in lines:
            self._write_scalars(line)
        self._file = run.metrics_file.open("a", encoding="utf-8")

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()
        self._writer.close()

    def track(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of a training step."""
        self._write({"kind": "train", "step": step, "time": time.time(), **metrics})

    def track_evaluation(self, step: int, label: str, metrics: Mapping[str, float]) -> None:
        """Write the metrics of an evaluation after `step` updates; label `before`, `step` or `after`."""
        self._evaluations.add((label, step))
        self._write({"kind": "evaluation", "label": label, "step": step, "time": time.time(), **metrics})

    def has_evaluation(self, label: str, step: int) -> bool:
        """Whether this evaluation is written, in this start of the run or an earlier one."""
        return (label, step) in self._evaluations

    def save_rollouts(self, step: int, kind: Kind, groups: Sequence[Group]) -> None:
        """Write the groups' rollouts. What an earlier start of the run wrote for this step and kind is replaced."""
        mode = "a" if (kind, step) in self._saved else "w"
        self._saved.add((kind, step))
        with self._run.rollouts_file(step, kind).open(mode, encoding="utf-8") as file:
            write_rollouts(file, step, kind, groups)

    def _write(self, line: Mapping[str, object]) -> None:
        append_line(self._file, line)
        self._write_scalars(line)
        self._writer.flush()

    def _write_scalars(self, line: Mapping[str, object]) -> None:
        prefix = "evaluation/" if line["kind"] == "evaluation" else ""
        for name, value in line.items():
            if name not in NOT_METRICS and isinstance(value, int | float):
                self._writer.add_scalar(prefix + name, value, line["step"], wall_time=line["time"])


def step_metrics(groups: Sequence[Group], update: Update, seconds_by_phase: Mapping[str, float]) -> dict[str, float]:
    """The metrics of one training step, by the names in this module's docstring."""
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
    metrics |= _staleness(rollouts, update.policy_version - 1)
    metrics |= _time_metrics(rollouts, update, seconds_by_phase)
    return metrics | _update_metrics(update)


def num_reply_tokens(rollout: Rollout) -> int:
    """Tokens of all replies of a rollout, forced ones included."""
    return sum(len(turn.reply) for turn in rollout.turns)


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
    parts: dict[str, list[float]] = defaultdict(list)
    for rollout in counted:
        for part, value in rollout.reward_parts.items():
            parts[part].append(value)
    metrics |= {f"reward_part/{env_id}/{part}": fmean(values) for part, values in sorted(parts.items())}
    lengths = [num_reply_tokens(rollout) for rollout in counted]
    metrics[f"reply_tokens/{env_id}"] = fmean(lengths)
    metrics[f"reply_tokens_max/{env_id}"] = max(lengths)
    metrics[f"forced_tokens/{env_id}"] = fmean(sum(turn.num_forced for turn in rollout.turns) for rollout in counted)
    metrics[f"turns/{env_id}"] = fmean(len(rollout.turns) for rollout in counted)
    metrics[f"malformed_calls/{env_id}"] = fmean(rollout.num_malformed_calls for rollout in counted)
    return metrics


def _staleness(rollouts: Sequence[Rollout], trained_version: int) -> dict[str, float]:
    """Updates between the version that sampled a token and the version that was trained on it."""
    ages: Counter[int] = Counter()
    replies = [turn.reply for rollout in rollouts if rollout.outcome.counts for turn in rollout.turns]
    for reply in replies:
        versions, counts = np.unique(reply.columns["version"][reply.sampled], return_counts=True)
        ages.update(dict(zip((trained_version - versions).tolist(), counts.tolist(), strict=True)))
    num_tokens = sum(ages.values())
    if not num_tokens:
        return {}
    return {"staleness": sum(age * num for age, num in ages.items()) / num_tokens, "staleness_max": max(ages)}


def _time_metrics(rollouts: Sequence[Rollout], update: Update, seconds: Mapping[str, float]) -> dict[str, float]:
    total = sum(seconds.values())
    num_sampled = sum(len(turn.reply) - turn.num_forced for rollout in rollouts for turn in rollout.turns)
    metrics = {"seconds": total}
    for phase, value in seconds.items():
        metrics[f"seconds/{phase}"] = value
        metrics[f"share/{phase}"] = value / total if total else 0.0
    for name, num, duration in (
        ("sampled", num_sampled, seconds.get("collect", 0.0)),
        ("trained", update.num_tokens, update.seconds),
        ("step", num_sampled, total),
    ):
        if duration > 0:
            metrics[f"tokens_per_s/{name}"] = num / duration
    return metrics
