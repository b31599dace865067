"""How long has an environment's code waited in our own queues? This time counts towards no deadline.

Code that uses a service with limited concurrency waits for its place inside `in_queue()`. The caller that set the clock
of that code (`envs.event_loop.Started`) extends its deadline by the time waited. Whatever is admitted has its own
deadline, so the queue moves and nobody waits forever.
"""

import contextlib
import time
from collections.abc import Iterator
from contextvars import ContextVar


class QueueClock:
    """How long a piece of code and the tasks that it started have waited in queues, in seconds."""

    def __init__(self) -> None:
        self._num_waiting = 0
        self._since_s = 0.0
        self._ended_s = 0.0

    @property
    def waited_s(self) -> float:
        """The time during which at least one of them waited. May be read from any thread."""
        return self._ended_s + (time.monotonic() - self._since_s if self._num_waiting else 0.0)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Use it on one event loop only."""
        if not self._num_waiting:
            self._since_s = time.monotonic()
        self._num_waiting += 1
        try:
            yield
        finally:
            waited_s = self.waited_s
            self._num_waiting -= 1
            if not self._num_waiting:
                self._ended_s = waited_s


CLOCK: ContextVar[QueueClock | None] = ContextVar("queue_clock", default=None)


@contextlib.contextmanager
def in_queue() -> Iterator[None]:
    """Time inside is spent waiting for a place in one of our queues, not on work of this environment."""
    clock = CLOCK.get()
    with clock.waiting() if clock else contextlib.nullcontext():
        yield
