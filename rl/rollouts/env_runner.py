"""How does environment code run off the engine's event loop, in threads and with a deadline for each call?

Environments that compute for long have processes instead (`rl.rollouts.env_processes`).

Each call of a synchronous method runs in a thread. Asynchronous methods share one separate event loop. Neither can be
killed: a thread that misses its deadline is abandoned and replaced, and so is a loop that environment code blocks. A
hanging environment therefore costs only its own rollouts. A deadline starts when a thread takes the call; waiting for a
free thread does not count, nor does waiting in queues of ours (`rewards.queue_clock`).
"""

import asyncio
import contextlib
import inspect
import queue
import threading
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

from envs.errors import named
from envs.event_loop import LOOP_TURN_S, DeadlineError, EnvLoop, within_s
from rewards.queue_clock import QueueClock, clocked

Result = TypeVar("Result")


class Runner(Protocol):
    """Runs the calls of an environment's session."""

    async def run(self, function: Callable[[], object], timeout_s: float, *, is_async: bool = False) -> Any:
        """The function's result; if the result is awaitable, its result.

        Raises `DeadlineError` after `timeout_s`, and any exception of the function.
        """
        ...

    def leave(self, function: Callable[[], object]) -> None:
        """Run a function whose result, or exception, nobody waits for. If the result is awaitable, it is awaited."""
        ...


class EnvRunner:
    """A bounded number of threads, and an event loop, for environment code."""

    def __init__(self, num_threads: int) -> None:
        self._slots = asyncio.Semaphore(num_threads)
        self._calls: queue.SimpleQueue[_Call] = queue.SimpleQueue()
        self._num_threads = 0  # threads that take calls; abandoned threads do not count
        self._num_running = 0
        self._loop: EnvLoop | None = None

    async def run(self, function: Callable[[], object], timeout_s: float, *, is_async: bool = False) -> Any:
        value = later(function) if is_async else await self._in_thread(function, timeout_s)
        return await self._on_loop(value, timeout_s) if inspect.isawaitable(value) else value

    def leave(self, function: Callable[[], object]) -> None:
        """In a new thread. An awaitable result is awaited on the loop, or, if there is none or environment code blocks
        it, on a new loop.
        """

        def call() -> None:
            with contextlib.suppress(BaseException):  # nobody looks at what it raises
                value = function()
                if not inspect.isawaitable(value):
                    return
                loop = self._loop
                if loop is not None and loop.answers(LOOP_TURN_S):
                    loop.submit(quietly(value))
                else:
                    asyncio.run(quietly(value))

        threading.Thread(target=call, daemon=True, name="environment-left").start()

    async def _on_loop(self, awaitable: Awaitable[Result], timeout_s: float) -> Result:
        loop = self._loop = self._loop or EnvLoop()
        started = loop.start(awaitable)
        try:
            return await started.result(timeout_s)
        except DeadlineError:
            # `answers` blocks, so it runs in a thread: this coroutine runs on the engine's loop. Another call may have
            # replaced the loop meanwhile, and the current one must stay: hence the comparison after the await.
            if not await asyncio.to_thread(loop.answers, LOOP_TURN_S) and self._loop is loop:
                self._loop = None
            raise
        finally:
            if started.future.cancelled():
                started.cancel()  # else the code would continue on the shared loop after its rollout has ended

    async def _in_thread(self, function: Callable[[], Result], timeout_s: float) -> Result:
        async with self._slots:  # before the call's clock: waiting for a slot must not use up the deadline
            loop = asyncio.get_running_loop()
            call = _Call(function, loop)
            self._num_running += 1
            if self._num_threads < self._num_running:
                self._num_threads += 1
                threading.Thread(target=_run_calls, args=(self._calls,), daemon=True, name="environment").start()
            self._calls.put(call)
            try:
                return await within_s(call.future, timeout_s, call.clock)
            finally:
                self._num_running -= 1
                # A thread that began the call cannot be stopped: do not count it, so that the next call starts another.
                # A thread that has not begun sees the cancelled future in `run` and skips the call.
                if call.future.cancelled() and call.has_begun:
                    call.is_abandoned = True
                    self._num_threads -= 1


async def within(awaitable: Awaitable[Result], timeout_s: float) -> Result:
    """Raise `DeadlineError` only for our deadline: the environment's own code may raise `TimeoutError` too."""
    scope = asyncio.timeout(timeout_s)
    try:
        async with scope:
            return await awaitable
    except TimeoutError:
        if scope.expired():
            raise DeadlineError(f"no result within {timeout_s} s") from None
        raise


async def later(function: Callable[[], object]) -> object:
    """Call the function on the environments' loop, so that blocking code stops that loop and not the engine's."""
    value = function()
    return await value if inspect.isawaitable(value) else value


async def quietly(awaitable: Awaitable[object]) -> None:
    with contextlib.suppress(Exception, SystemExit, KeyboardInterrupt):  # the last two would end the loop
        await awaitable


def waitable(error: BaseException) -> BaseException:
    """The error, or another one with its name if it would end the coroutine that waits for the call."""
    is_control = isinstance(error, StopIteration | GeneratorExit | asyncio.CancelledError)
    return RuntimeError(named(error)) if is_control else error


class _Call:
    """A function for a thread, and the future of its result."""

    def __init__(self, function: Callable[[], object], loop: asyncio.AbstractEventLoop) -> None:
        self._function = function
        self._loop = loop
        self.future: asyncio.Future[Any] = loop.create_future()
        self.clock = QueueClock()
        self.has_begun = False
        self.is_abandoned = False

    def run(self) -> None:
        # Set before the check: if the call is cancelled right after the check, `_in_thread` must see that it began.
        self.has_begun = True
        if self.future.cancelled():
            return
        try:
            with clocked(self.clock):
                value = self._function()
        except BaseException as error:  # SystemExit included: it must not end the worker
            self._report(self.future.set_exception, waitable(error))
        else:
            self._report(self.future.set_result, value)

    def _report(self, set_result: Callable[[Any], None], value: object) -> None:
        if not self._loop.is_closed():  # an abandoned thread may end after the worker
            self._loop.call_soon_threadsafe(self._deliver, set_result, value)

    def _deliver(self, set_result: Callable[[Any], None], value: object) -> None:
        if not self.future.done():
            set_result(value)


def _run_calls(calls: "queue.SimpleQueue[_Call]") -> None:
    """Body of each thread: run calls from the queue until one of them was abandoned."""
    while True:
        call = calls.get()
        call.run()
        if call.is_abandoned:
            return
        del call  # it holds an environment, which must not stay until the next call comes
