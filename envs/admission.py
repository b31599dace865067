"""Which time of an environment's code is spent in a queue of our own? It counts toward no deadline.

Code that asks something of which only so many may be in work at once waits inside `in_queue()`. Whoever set the clock
of that code (`envs.event_loop.Started`) gives it so much longer. What is admitted has a deadline of its own, so the
queue moves, and nobody waits for ever.
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
        """The time in which at least one of them waited. May be read from any thread."""
        return self._ended_s + (time.monotonic() - self._since_s if self._num_waiting else 0.0)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """To be used on one event loop."""
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
    """What is waited for inside is a place in a queue of ours, and no work of this environment."""
    clock = CLOCK.get()
    with clock.waiting() if clock else contextlib.nullcontext():
        yield
