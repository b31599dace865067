"""When did an engine sample, and when did it wait for requests?"""

import threading
from collections import deque
from dataclasses import dataclass, field

Interval = tuple[float, float]
"""Begin and end, in seconds of the epoch."""
MERGED_S = 0.02
"""Intervals that are less apart are one: between two steps requests are admitted and replies handed over."""
MOST = 10_000
"""Intervals to keep until they are taken."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a worker says of itself after a step."""

    intervals: list[Interval] = field(default_factory=list)
    """When its engine has sampled since it was asked last."""
    memory_mib: float | None = None
    """What its process holds; None if it does not answer."""


class WorkTimes:
    """The intervals in which a thread worked, until another thread takes them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._intervals: deque[Interval] = deque(maxlen=MOST)

    def add(self, begin: float, end: float) -> None:
        with self._lock:
            if self._intervals and 0 <= begin - self._intervals[-1][1] < MERGED_S:
                begin, _ = self._intervals.pop()
            self._intervals.append((begin, end))

    def take(self) -> list[Interval]:
        """The intervals since the last call, oldest first."""
        with self._lock:
            taken = list(self._intervals)
            self._intervals.clear()
        return taken
