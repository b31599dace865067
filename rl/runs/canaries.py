"""Is the run still training the right thing? Canaries look at the newest steps: they warn, mask groups, pause the run,
or stop it with the reason.

Groups are checked before the update, and the update before its weights are published. Warnings and pauses are said
when a value rises above their threshold, and again only after it was below; a stop is repeated.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from envs.json_lines import JsonObject
from rl.config.canaries import LEVELS, CanaryConfig, Level, RowsCanary
from rl.data_types import Group, Outcome, Rollout, Update
from rl.runs.watch import FallWatch, Measured, Watch

ROWS: Mapping[str, tuple[Callable[[Rollout], bool], str]] = {
    "masked_rows": (lambda rollout: not rollout.outcome.counts, "did not count"),
    "truncated_rows": (lambda rollout: rollout.outcome == Outcome.TRUNCATED, "were cut off"),
    "budget_violations": (lambda rollout: bool(rollout.budget_violation), "violated the thinking budget"),
}
"""Canaries of rollouts: which rollouts they count, and in words."""
UPDATES: Mapping[str, tuple[str, str]] = {
    "mismatch": ("mismatch between learner and engine", "they do not compute the same policy"),
    "grad_norm": ("the gradient's norm", "lower learner.learning_rate"),
}
"""Canaries of updates, fields of `Update`: what they look at, and what a high value means."""


class CanaryStop(RuntimeError):
    """A canary's threshold was exceeded; continuing would train the wrong thing."""

    exit_code = 3
    headline = "stopped by a canary, a threshold of the section canaries"


class Canaries:
    """The canaries of a run and what they saw."""

    def __init__(self, config: CanaryConfig, state: Mapping[str, JsonObject]) -> None:
        """`state` is what `state` returned, or empty."""
        self._config = config
        self._watches: dict[str, Watch] = {
            name: (FallWatch if name == "reward_fall" else Watch)(getattr(config, name), state.get(name))
            for name in (*ROWS, "reward_fall", *UPDATES)
        }
        self._not_finite: int = state.get("not_finite", {}).get("in_a_row", 0)
        self._num_masked: Counter[str] = Counter()
        self._notes: list[str] = []
        self._pauses: list[str] = []

    def check_groups(self, groups: Sequence[Group]) -> list[Group]:
        """Check groups before the update; returns those to train. Raises `CanaryStop`, naming canary, value and key."""
        self._pauses.clear()  # of a step whose update was refused
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        for name, (is_bad, words) in ROWS.items():
            bad = [rollout for rollout in rollouts if is_bad(rollout)]
            self._watches[name].measure(Measured(len(bad) / len(rollouts), len(rollouts)))
            self._act(name, lambda value, words=words: f"{_percent(value)} of the rollouts {words}", _advice(name, bad))
        rewards = [rollout.reward for rollout in rollouts if rollout.reward is not None]
        measured = Measured(fmean(rewards), len(rewards), min(rewards)) if rewards else None
        self._watches["reward_fall"].measure(measured)
        fall = "the mean reward fell by {} of the way from its best to the lowest reward"
        self._act("reward_fall", lambda value: fall.format(_percent(value)), "lower learner.learning_rate")
        return self._kept(groups)

    def mask_update(self, groups: Sequence[Group], error: Exception) -> None:
        """The update of these groups was refused because of a number that is not finite. Raises `CanaryStop` if that
        happened too often in a row; otherwise they are masked."""
        if self._not_finite == self._config.not_finite.mask:
            raise self._stopped(str(error)) from error
        self._not_finite += 1
        first_sentence = str(error).split(". ")[0]
        self._notes.append(f"canary not_finite masked the groups of tasks {_tasks(groups)}: {first_sentence}")

    def check_update(self, update: Update) -> None:
        """Check an update before its weights are served. Raises `CanaryStop`, naming canary, value and key."""
        for name in ("loss", "grad_norm", "mismatch"):
            if not math.isfinite(getattr(update, name) or 0.0):
                text = f"{name} is {getattr(update, name)} after update {update.policy_version}"
                if name in UPDATES:
                    text += f" (canaries.{name} judges finite values only); {UPDATES[name][1]}"
                raise self._stopped(text)
        for name, (what, advice) in UPDATES.items():
            value = getattr(update, name)
            self._watches[name].measure(None if value is None else Measured(value))  # None: no fresh token
            self._act(name, lambda value, what=what: f"{what} is {value:.3f}", advice)

    def count_step(self) -> list[str]:
        """The step that was checked counts, and enters the windows. Returns the reasons to pause after it."""
        for watch in self._watches.values():
            watch.count()
        self._num_masked["not_finite"], self._not_finite = self._not_finite, 0
        pauses, self._pauses = self._pauses, []
        return pauses

    def metrics(self) -> dict[str, float]:
        """Of the newest step, by the names in `rl.runs.tracking`."""
        metrics: dict[str, float] = {"canary/not_finite": self._num_masked["not_finite"]}
        for name, watch in self._watches.items():
            if watch.value is not None:
                metrics |= {f"canary/{name}": watch.value, f"canary/{name}/level": LEVELS.index(watch.level)}
            if isinstance(watch.config, RowsCanary) and watch.config.mask is not None:
                metrics[f"canary/{name}/masked_groups"] = self._num_masked[name]
        return metrics

    def notes(self) -> list[str]:
        """What was said since the last call."""
        said, self._notes = self._notes, []
        return said

    def state(self) -> dict[str, JsonObject]:
        """For the checkpoint, as JSON: the windows, of steps that count."""
        windows = {name: watch.state() for name, watch in self._watches.items()}
        return {**windows, "not_finite": {"in_a_row": self._not_finite}}

    def _act(self, name: str, in_words: Callable[[float], str], advice: str) -> None:
        """Warn, ask for a pause or stop, by the value over the window."""
        watch = self._watches[name]
        level, value = watch.level, watch.value
        if value is None or level == "ok" or not (level == "stop" or watch.has_risen):
            return
        text = f"{in_words(value)} ({self._key(name, level)}); {advice}"
        if level == "stop":
            raise self._stopped(text)
        self._notes.append(f"canary {name}: {text}")
        if level == "pause":
            self._pauses.append(text)

    def _stopped(self, text: str) -> CanaryStop:
        self._notes.append(f"canary stops the run: {text}")
        return CanaryStop(text)

    def _key(self, name: str, level: Level) -> str:
        config = self._watches[name].config
        limit: float = getattr(config, level)
        shown = f"{limit:g}" if name in UPDATES else _percent(limit)
        return f"canaries.{name}.{level} is {shown}" + (f" over {config.window} steps" if config.window > 1 else "")

    def _kept(self, groups: Sequence[Group]) -> list[Group]:
        """The groups of which no canary masks too large a share."""
        kept = list(groups)
        for name, (is_bad, words) in ROWS.items():
            limit: float | None = getattr(self._config, name).mask
            if limit is None:
                continue
            bad = [group for group in groups if _share(group.rollouts, is_bad) > limit]
            self._num_masked[name] = len(bad)
            if bad:
                ids = {group.group_id for group in bad}
                kept = [group for group in kept if group.group_id not in ids]
                why = f"more than {_percent(limit)} of their rollouts {words} (canaries.{name}.mask)"
                self._notes.append(f"canary {name} masked the groups of tasks {_tasks(bad)}: {why}")
        return kept


def _tasks(groups: Sequence[Group]) -> str:
    return ", ".join(str(group.task.ordinal) for group in groups)


def _share(rollouts: Sequence[Rollout], is_bad: Callable[[Rollout], bool]) -> float:
    return sum(map(is_bad, rollouts)) / len(rollouts)


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%"


def _advice(name: str, bad: Sequence[Rollout]) -> str:
    """What to look at or to do, by the first of the step's rollouts that the canary counted."""
    if name == "truncated_rows":
        return "raise rollout.max_reply_tokens or policy.max_tokens, or lower the thinking budget"
    if not bad:
        return "none in the newest step"
    first = bad[0]
    if name == "masked_rows":
        return f"the first: {first.outcome}: {first.error}"
    return f"the first, {first.task.env_id} with budget {first.task.budget}: {first.budget_violation}"
