"""How long does each phase of a step take, and what works meanwhile: engines, the learner, both or neither?"""

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean

from rl.engine.work_times import Interval

LEARNER_PHASES = ("update", "publish")
"""In these the learner works, and the loop waits for it. For a checkpoint it need not wait."""


class StepTimes:
    """The phases of a step, one after the other, since the last step's metrics."""

    def __init__(self) -> None:
        self._phases: list[tuple[str, Interval]] = []
        self._saving: list[Interval] = []

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        begun = time.time()
        try:
            yield
        finally:
            self._phases.append((name, (begun, max(begun, time.time()))))

    def saved(self, interval: Interval) -> None:
        """The learner wrote a checkpoint from here to there, whatever phase the loop was in."""
        self._saving.append(interval)

    def clear(self) -> None:
        self._phases.clear()
        self._saving.clear()

    def seconds(self) -> Mapping[str, float]:
        """Seconds by phase."""
        seconds: dict[str, float] = defaultdict(float)
        for name, (begin, end) in self._phases:
            seconds[name] += end - begin
        return seconds

    def overlap(self, engines: Sequence[Sequence[Interval]]) -> dict[str, float]:
        """Shares of the phases' time in which engines, the learner, both and neither work; means over the engines. The
        sum is 1. Empty without engines.

        `engines` are the intervals in which each engine worked, by the clock of its machine.
        """
        if not engines or not self._phases:
            return {}
        all_phases = [interval for _, interval in self._phases]
        learner = [interval for name, interval in self._phases if name in LEARNER_PHASES] + self._saving
        total = _length(all_phases) or 1.0
        both = fmean(_common(worked, learner) for worked in engines) / total
        any_engine = fmean(_common(worked, all_phases) for worked in engines) / total
        only_learner = _length(learner) / total - both
        return {
            "engines": any_engine - both,
            "learner": only_learner,
            "both": both,
            "neither": 1.0 - any_engine - only_learner,
        }


def _length(intervals: Sequence[Interval]) -> float:
    return sum(end - begin for begin, end in intervals)


def _common(first: Sequence[Interval], second: Sequence[Interval]) -> float:
    """Seconds that lie in both; the intervals of each do not overlap."""
    return sum(
        max(0.0, min(end, other_end) - max(begin, other_begin))
        for begin, end in first
        for other_begin, other_end in second
    )
