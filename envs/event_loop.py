"""Where does asynchronous environment code run? On an event loop in its own thread, separate from the engine's.

`settle` waits for an environment's result in code that is not asynchronous itself: checks, supervised data, people.
`call_within` calls environment code with a deadline. This takes a thread, since Python cannot stop code that hangs.
"""

import asyncio
import concurrent.futures
import contextvars
import inspect
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Generic, TypeVar

from rewards.queue_clock import CLOCK, QueueClock, clocked

Result = TypeVar("Result")
LOOP_TURN_S = 1.0
"""A loop that does not respond for this long is blocked."""
LOOP_THREAD = "environment-loop"


class DeadlineError(TimeoutError):
    """A call missed our deadline; a plain `TimeoutError` was raised by environment code itself."""


class EnvLoop:
    """An event loop in a daemon thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True, name=LOOP_THREAD).start()

    def submit(self, coroutine: Coroutine[Any, Any, Result]) -> concurrent.futures.Future[Result]:
        """Start the coroutine on this loop; any thread can wait for the future."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def start(self, awaitable: Awaitable[Result]) -> "Started[Result]":
        """Await it on this loop; `future` belongs to the loop of the caller. Cheaper than `submit`."""
        started = Started(awaitable, asyncio.get_running_loop(), self._loop)
        self._loop.call_soon_threadsafe(started.begin)
        return started

    def answers(self, within_s: float) -> bool:
        """Whether the loop still responds: code that blocks it starves everything else on it."""
        turned = threading.Event()
        self._loop.call_soon_threadsafe(turned.set)
        return turned.wait(within_s)


async def within_s(
    future: "asyncio.Future[Result]",
    timeout_s: float,
    clock: QueueClock,
    extended: Callable[[], None] = lambda: None,
) -> Result:
    """The future's result. Time that the code spends in our queues, on its clock, does not count; `extended` is called
    each time at which the deadline would have passed without that.

    Raises `DeadlineError` after `timeout_s` and cancels the future: the code's own `TimeoutError` is another error.
    """
    try:
        while not future.done():
            left_s = clock.left_s(timeout_s)
            if left_s <= 0:
                raise DeadlineError(f"no result within {timeout_s} s")
            await asyncio.wait([future], timeout=left_s)
            if not future.done() and clock.left_s(timeout_s) > 0:
                extended()
        return future.result()
    finally:
        future.cancel()


class Started(Generic[Result]):
    """An awaitable that one loop waits for and another loop runs."""

    def __init__(
        self, awaitable: Awaitable[Result], here: asyncio.AbstractEventLoop, there: asyncio.AbstractEventLoop
    ) -> None:
        self.future: asyncio.Future[Result] = here.create_future()
        self._awaitable, self._here, self._there = awaitable, here, there
        self._task: asyncio.Task[None] | None = None
        self._clock = QueueClock()

    def begin(self) -> None:
        """Call this on the loop that runs the awaitable."""
        context = contextvars.copy_context()
        context.run(CLOCK.set, self._clock)
        self._task = self._there.create_task(self._wait(), context=context)

    async def result(self, timeout_s: float, extended: Callable[[], None] = lambda: None) -> Result:
        """The result; call this on the loop that waits. As `within_s`."""
        return await within_s(self.future, timeout_s, self._clock, extended)

    def cancel(self) -> None:
        """Call this on the loop that waits, after it has given up."""
        self._there.call_soon_threadsafe(lambda: self._task.cancel() if self._task else None)

    async def _wait(self) -> None:
        try:
            result = await self._awaitable
        except asyncio.CancelledError:  # not ours: after giving up, nobody reads the future
            self._deliver(self.future.set_exception, RuntimeError("the environment cancelled itself"))
        except GeneratorExit as error:  # it would end the waiting code, which would not catch it
            self._deliver(self.future.set_exception, RuntimeError(f"the environment raised {type(error).__name__}"))
        except BaseException as error:
            self._deliver(self.future.set_exception, error)
        else:
            self._deliver(self.future.set_result, result)

    def _deliver(self, settle: Callable[..., Any], *value: Any) -> None:
        if not self._here.is_closed():
            self._here.call_soon_threadsafe(lambda: None if self.future.done() else settle(*value))


class _Raised:
    """An exception of environment code, passed as a value: SystemExit must end neither a loop nor a thread of ours."""

    def __init__(self, error: BaseException) -> None:
        is_ctrl_c = isinstance(error, KeyboardInterrupt)  # nobody pressed it in this thread
        self.error = RuntimeError("the environment raised KeyboardInterrupt") if is_ctrl_c else error


async def _carried(awaitable: Awaitable[Result]) -> "Result | _Raised":
    try:
        return await awaitable
    except asyncio.CancelledError:  # ours, after a deadline: nobody reads the result
        raise
    except BaseException as error:
        return _Raised(error)


_shared: EnvLoop | None = None
_lock = threading.Lock()


def shared_loop() -> EnvLoop:
    """The process's loop for `settle`: connections that an environment opens belong to one loop."""
    global _shared
    with _lock:
        _shared = _shared or EnvLoop()
        return _shared


def _forget_loop() -> None:
    global _shared
    _shared = None


os.register_at_fork(after_in_child=_forget_loop)  # its thread is not in the child


def settle(value: Any, timeout_s: float = 120.0) -> Any:
    """The value itself, or its result if it is awaitable.

    Raises `DeadlineError` after `timeout_s`, and whatever the awaitable raises. A blocked loop is abandoned.
    """
    if not inspect.isawaitable(value):
        return value
    loop, clock = shared_loop(), QueueClock()
    with clocked(clock):
        future = loop.submit(_carried(value))
    if not _is_done(future, timeout_s, clock):
        future.cancel()
        _abandon_if_blocked(loop)
        raise DeadlineError(f"no result within {timeout_s} s")
    try:
        result = future.result()
    except concurrent.futures.CancelledError:
        raise RuntimeError("the environment cancelled itself") from None
    if isinstance(result, _Raised):
        raise result.error
    return result


def call_within(function: Callable[[], Any], timeout_s: float) -> Any:
    """The result of the function, which runs in its own thread; the result is awaited if it is awaitable.

    Raises `DeadlineError` after `timeout_s` and abandons the thread, since Python cannot end it. Raises whatever the
    function raises.
    """
    outcome: concurrent.futures.Future[Any] = concurrent.futures.Future()
    clock = QueueClock()

    def run() -> None:
        try:
            with clocked(clock):
                outcome.set_result(function())
        except BaseException as error:
            outcome.set_result(_Raised(error))

    threading.Thread(target=run, daemon=True, name="environment-call").start()
    if not _is_done(outcome, timeout_s, clock):
        raise DeadlineError(f"no result within {timeout_s} s")
    value = outcome.result()
    if isinstance(value, _Raised):
        raise value.error
    return settle(value, max(0.0, clock.left_s(timeout_s)))


def _is_done(future: "concurrent.futures.Future[Any]", timeout_s: float, clock: QueueClock) -> bool:
    """Wait for the future, in a thread; False after `timeout_s` without the time in our queues."""
    while not concurrent.futures.wait([future], max(0.0, clock.left_s(timeout_s))).done:
        if clock.left_s(timeout_s) <= 0:
            return False
    return True


def _abandon_if_blocked(loop: EnvLoop) -> None:
    global _shared
    if not loop.answers(LOOP_TURN_S):
        with _lock:
            _shared = None if _shared is loop else _shared
