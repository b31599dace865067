"""How long has an environment's code waited in our own queues? This time counts towards no deadline.

Code that uses something of which there are few, such as a judge's places or worker processes, waits for it inside
`in_queue()`. The caller that set the clock of that code (`envs.event_loop`, `rl.rollouts.env_runner`) extends its
deadline by the time waited. Whatever is admitted has its own deadline, so the queue moves and nobody waits forever.
"""

import contextlib
import threading
import time
from collections.abc import Iterator
from contextvars import ContextVar


class QueueClock:
    """How long a piece of code, and the tasks that it started, have waited in queues. Threads may share it."""

    def __init__(self) -> None:
        self._begun_s = time.monotonic()
        self._lock = threading.Lock()
        self._num_waiting = 0
        self._since_s = 0.0
        self._ended_s = 0.0

    def left_s(self, timeout_s: float) -> float:
        """What is left of a deadline that began with this clock; the time during which one of them waited is added."""
        with self._lock:
            return self._begun_s + timeout_s + self._waited_s() - time.monotonic()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        with self._lock:
            if not self._num_waiting:
                self._since_s = time.monotonic()
            self._num_waiting += 1
        try:
            yield
        finally:
            with self._lock:
                waited_s = self._waited_s()
                self._num_waiting -= 1
                if not self._num_waiting:
                    self._ended_s = waited_s

    def _waited_s(self) -> float:
        return self._ended_s + (time.monotonic() - self._since_s if self._num_waiting else 0.0)


CLOCK: ContextVar[QueueClock | None] = ContextVar("queue_clock", default=None)


@contextlib.contextmanager
def in_queue() -> Iterator[None]:
    """Time inside is spent waiting for a place in one of our queues, not on work of this environment."""
    clock = CLOCK.get()
    with clock.waiting() if clock else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def clocked(clock: QueueClock) -> Iterator[None]:
    """Code inside, and what it starts, waits on this clock."""
    token = CLOCK.set(clock)
    try:
        yield
    finally:
        CLOCK.reset(token)
