"""What happens on Ctrl-C and SIGTERM? The run stops at the next safe point, writes a checkpoint and says so by its exit code."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType


class StopRequested(BaseException):
    """Somebody asked the run to stop. A BaseException, so that no handler of errors swallows it."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.exit_code = 128 + signal_number


class StopSignal:
    """Turns SIGINT and SIGTERM into `StopRequested`, at once or, inside `deferred()`, at its end."""

    def __init__(self) -> None:
        self._is_deferred = False
        self._received: int | None = None

    @contextlib.contextmanager
    def installed(self) -> Iterator["StopSignal"]:
        """Handle the signals inside this block; nest it inside whatever installs handlers of its own (Ray does)."""
        previous = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """What runs in here is completed first: an update and its bookkeeping belong together."""
        self._is_deferred = True
        try:
            yield
        finally:
            self._is_deferred = False
        if self._received is not None:
            raise StopRequested(self._received)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._received = number
        if not self._is_deferred:
            raise StopRequested(number)
