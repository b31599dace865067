"""What happens on Ctrl-C and SIGTERM? The run stops at the next safe point, with a checkpoint and a truthful exit code.

The handler only notes the signal: an exception that it raised would surface inside whatever C code is running. All that
waits looks for the note between short waits, with `raise_if_requested`.
"""

import contextlib
import ctypes
import signal
from collections.abc import Iterator
from types import FrameType

PR_SET_PDEATHSIG = 1
POLL_S = 0.2
"""How long a wait may go on before it looks whether to stop."""


class StopRequested(BaseException):
    """Somebody asked the run to stop. A BaseException, so that no handler of errors swallows it."""

    def __init__(self, what: str, exit_code: int) -> None:
        """`what` made the run stop: a signal's name, or a cause in words."""
        super().__init__(what)
        self.exit_code = exit_code


class _Note:
    """The process's one note; signals are a matter of the whole process."""

    received: StopRequested | None = None
    is_deferred = False


@contextlib.contextmanager
def handled_signals() -> Iterator[None]:
    """Note SIGINT and SIGTERM inside this block; nest it inside whatever installs handlers of its own (Ray does)."""
    previous = {number: signal.signal(number, _note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _note(number: int, frame: FrameType | None) -> None:
    _Note.received = StopRequested(signal.Signals(number).name, 128 + number)


def request_stop(what: str) -> None:
    """Stop the run at its next safe point, as a signal would, with exit code 1; from any thread."""
    _Note.received = StopRequested(what, 1)


def raise_if_requested() -> None:
    """Raises `StopRequested`, once, when a stop was requested and no block defers it."""
    received = _Note.received
    if received is not None and not _Note.is_deferred:
        _Note.received = None
        raise received


@contextlib.contextmanager
def deferred_stop() -> Iterator[None]:
    """What runs in here is completed first: an update and its bookkeeping belong together."""
    _Note.is_deferred = True
    try:
        yield
    finally:
        _Note.is_deferred = False
    raise_if_requested()


def end_with_parent() -> None:
    """For a child process to call before it becomes its program: SIGTERM when its parent ends, however that ends.

    Linux only; elsewhere it does nothing.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
