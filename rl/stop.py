"""How does a run stop on Ctrl-C and SIGTERM? At the next safe point, with a checkpoint and the signal's exit code.
SIGUSR1 lets a run that pauses go on.

The handler of a run only records the signal: an exception from a handler would surface inside any C code that is
running. Code that waits polls for the record with `raise_if_requested`.
"""

import contextlib
import ctypes
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

PR_SET_PDEATHSIG = 1
POLL_S = 0.2
"""Maximum time between two polls for a stop."""


class StopRequested(BaseException):
    """The run should stop. A BaseException, so that no `except Exception` swallows it."""

    headline = "stopped"

    def __init__(self, what: str, exit_code: int) -> None:
        """`what` made the run stop: a signal's name, or a cause in words."""
        super().__init__(what)
        self.add_note("the same command continues from the last step; `rl train` needs --resume")
        self.exit_code = exit_code


class _Note:
    """The record of a requested stop, one per process, because signals reach the whole process."""

    received: StopRequested | None = None
    is_deferred = False
    goes_on = False


STOPS = (signal.SIGINT, signal.SIGTERM)


def handled_signals() -> contextlib.AbstractContextManager[None]:
    """Record SIGINT, SIGTERM and SIGUSR1 inside this block. Nest it inside code that installs its own handlers, such as
    Ray.
    """
    return _handled(_note, (*STOPS, signal.SIGUSR1))


def raised_signals() -> contextlib.AbstractContextManager[None]:
    """Raise `StopRequested` at once on SIGINT and SIGTERM, for commands without a state that must stay consistent."""
    return _handled(_raise, STOPS)


@contextlib.contextmanager
def _handled(handle: Callable[[int, FrameType | None], None], numbers: Sequence[signal.Signals]) -> Iterator[None]:
    previous = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _note(number: int, frame: FrameType | None) -> None:
    if number == signal.SIGUSR1:
        _Note.goes_on = True
    else:
        _Note.received = StopRequested(signal.Signals(number).name, 128 + number)


def _raise(number: int, frame: FrameType | None) -> None:
    raise StopRequested(signal.Signals(number).name, 128 + number)


def take_go_on() -> bool:
    """Whether SIGUSR1 came since the last call."""
    came, _Note.goes_on = _Note.goes_on, False
    return came


def request_stop(what: str) -> None:
    """Request a stop at the next safe point, as a signal does, with exit code 1; from any thread."""
    _Note.received = StopRequested(what, 1)


def raise_if_requested() -> None:
    """Raises `StopRequested`, once, when a stop was requested and no block defers it.

    Only the main thread stops: what another one does for it, such as writing a checkpoint, is completed.
    """
    received = _Note.received
    is_main = threading.current_thread() is threading.main_thread()
    if received is not None and not _Note.is_deferred and is_main:
        _Note.received = None
        raise received


@contextlib.contextmanager
def deferred_stop() -> Iterator[None]:
    """Defer a stop until the end of the block, because an update and its bookkeeping belong together."""
    _Note.is_deferred = True
    try:
        yield
    finally:
        _Note.is_deferred = False
    raise_if_requested()


def end_with_parent() -> None:
    """For a child process, before it executes its program: it gets SIGTERM when its parent ends, however that ends.

    Linux only; elsewhere it does nothing.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
