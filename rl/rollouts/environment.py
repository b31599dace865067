"""How does environment code run? Off the engine's event loop, each call with a deadline.

Ordinary methods run in a thread of their own each, asynchronous ones together on another event loop. Neither can be
killed: a thread that misses its deadline is abandoned and its place given to the next call, and so is a loop that code
blocks. So a hanging environment costs its own rollouts only. Every failure leaves here as an `EpisodeError` with its
outcome.
"""

import asyncio
import inspect
import math
import queue
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from envs.event_loop import EnvLoop
from envs.messages import Message, Reply
from envs.registry import make
from envs.text_env import StepResult, TextEnv, read_score
from rl.config import RolloutConfig
from rl.data_types import Outcome, Task

Result = TypeVar("Result")


class EpisodeError(Exception):
    """An episode that cannot go on, through no doing of the policy."""

    def __init__(self, outcome: Outcome, message: str) -> None:
        super().__init__(message)
        self.outcome = outcome


LOOP_TURN_S = 1.0
"""A loop on which nothing happens for so long is blocked."""


class EnvRunner:
    """Bounded threads and an event loop for environment code."""

    def __init__(self, num_threads: int) -> None:
        self._slots = asyncio.Semaphore(num_threads)
        self._calls: queue.SimpleQueue[_Call] = queue.SimpleQueue()
        self._num_threads = 0  # that take calls; an abandoned one does not
        self._num_running = 0
        self._loop: EnvLoop | None = None

    async def run(self, function: Callable[[], Any], timeout_s: float, *, is_async: bool = False) -> Any:
        """What the function gives, waited for where it is awaitable.

        Raises `TimeoutError` after `timeout_s`, and whatever the function raises.
        """
        value = function() if is_async else await self._in_thread(function, timeout_s)
        return await self._on_loop(value, timeout_s) if inspect.isawaitable(value) else value

    def leave(self, function: Callable[[], Any]) -> None:
        """Run a function in a thread that nobody waits for; what it gives to wait for ends on the loop."""

        async def wait(value: Awaitable[Any]) -> None:
            await value

        def call() -> None:
            value = function()
            if inspect.isawaitable(value) and self._loop is not None:
                self._loop.submit(wait(value))

        threading.Thread(target=call, daemon=True, name="environment-left").start()

    async def _on_loop(self, awaitable: Awaitable[Result], timeout_s: float) -> Result:
        loop = self._loop = self._loop or EnvLoop()
        started = loop.start(awaitable)
        try:
            async with asyncio.timeout(timeout_s):
                return await started.future
        except TimeoutError:
            if self._loop is loop and not await asyncio.to_thread(loop.answers, LOOP_TURN_S):
                self._loop = None
            raise
        finally:
            if started.future.cancelled():
                started.cancel()

    async def _in_thread(self, function: Callable[[], Result], timeout_s: float) -> Result:
        async with self._slots:
            loop = asyncio.get_running_loop()
            call = _Call(function, loop)
            self._num_running += 1
            if self._num_threads < self._num_running:
                self._num_threads += 1
                threading.Thread(target=_run_calls, args=(self._calls,), daemon=True, name="environment").start()
            self._calls.put(call)
            try:
                async with asyncio.timeout(timeout_s):
                    return await call.future
            finally:
                self._num_running -= 1
                if call.future.cancelled() and call.has_begun:
                    call.is_abandoned = True
                    self._num_threads -= 1


class _Call:
    """A function for a thread, and the future of its result."""

    def __init__(self, function: Callable[[], Any], loop: asyncio.AbstractEventLoop) -> None:
        self._function = function
        self._loop = loop
        self.future: asyncio.Future[Any] = loop.create_future()
        self.has_begun = False
        self.is_abandoned = False

    def run(self) -> None:
        self.has_begun = True  # before looking, so that whoever cancels now knows that this thread is taken
        if self.future.cancelled():
            return
        try:
            value = self._function()
        except BaseException as error:  # SystemExit included: it must not end the worker
            is_control = isinstance(error, StopIteration | asyncio.CancelledError)  # these would end what waits
            wrapped = RuntimeError(f"{type(error).__name__}: {error}") if is_control else error
            self._report(self.future.set_exception, wrapped)
        else:
            self._report(self.future.set_result, value)

    def _report(self, set_result: Callable[[Any], None], value: Any) -> None:
        if not self._loop.is_closed():  # an abandoned thread may end after the worker
            self._loop.call_soon_threadsafe(self._deliver, set_result, value)

    def _deliver(self, set_result: Callable[[Any], None], value: Any) -> None:
        if not self.future.done():
            set_result(value)


def _run_calls(calls: "queue.SimpleQueue[_Call]") -> None:
    """What each thread does: one call after another, whoever waits for it, until one of them was abandoned."""
    while True:
        call = calls.get()
        call.run()
        if call.is_abandoned:
            return


class Episode:
    """One environment instance playing one task, with deadlines and checked results."""

    def __init__(self, task: Task, runner: EnvRunner, config: RolloutConfig) -> None:
        self._task = task
        self._runner = runner
        self._config = config
        self._env: TextEnv | None = None
        self.reward = 0.0
        self.reward_parts: dict[str, float] = {}

    @property
    def env(self) -> TextEnv:
        assert self._env is not None, "reset comes first"
        return self._env

    async def reset(self) -> tuple[Message, ...]:
        """The opening messages. Raises `EpisodeError`."""

        def reset() -> Any:
            self._env = make(self._task.env_id)
            return self._env.reset(seed=self._task.seed, options={**self._task.options, "split": self._task.split})

        result = await self._guarded("reset", reset, self._config.reset_timeout_s)
        if not isinstance(result, tuple) or len(result) != 2:
            raise self._error("reset must return (messages, info)")
        return self._checked_messages(result[0])

    async def step(self, reply: Reply) -> tuple[tuple[Message, ...], bool, bool]:
        """Messages that follow, terminated, truncated; the reward is added up here. Raises `EpisodeError`."""
        timeout_s, is_async = self._config.step_timeout_s, self.env.is_async
        result = await self._guarded("step", lambda: self.env.step(reply), timeout_s, is_async=is_async)
        messages, reward, terminated, truncated, info = self._checked_result(result)
        self._add(reward, self._checked_parts(info.get("reward_parts", {})))
        return messages, terminated, truncated

    async def score_group(self, conversations: Sequence[tuple[Message, ...]]) -> list[tuple[float, dict[str, float]]]:
        """What each member earns beside its own reward. Raises `EpisodeError`."""
        call = lambda: self.env.score_group(conversations)  # noqa: E731
        scores = await self._guarded("score_group", call, self._config.step_timeout_s)
        if not isinstance(scores, Sequence) or len(scores) != len(conversations):
            raise self._error(f"score_group must give {len(conversations)} scores in order, got {scores!r:.200}")
        return [self._checked_score(score) for score in scores]

    def _add(self, reward: float, parts: Mapping[str, float]) -> None:
        self.reward += reward
        self.reward_parts.update(parts)
        self.check_range(self.reward)

    def check_range(self, reward: float) -> None:
        """Raises `EpisodeError` for a reward that the environment said it never gives."""
        low, high = self.env.reward_range
        if not low - 1e-6 <= reward <= high + 1e-6:
            raise self._error(f"reward {reward} is outside of its declared range [{low}, {high}]")

    def close(self) -> None:
        """Let an environment that has something to clean up do so, in a thread nobody waits for."""
        if self._env is not None and self._env.has_close:
            self._runner.leave(self._env.close)

    async def _guarded(
        self, phase: str, function: Callable[[], Any], timeout_s: float, *, is_async: bool = False
    ) -> Any:
        try:
            return await self._runner.run(function, timeout_s, is_async=is_async)
        except TimeoutError:
            key = "reset_timeout_s" if phase == "reset" else "step_timeout_s"
            message = f"{self._where()}: {phase} took longer than {timeout_s} s (rollout.{key})"
            raise EpisodeError(Outcome.ENV_TIMEOUT, message) from None
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError):
                raise
            raise self._error(f"{phase} raised {type(error).__name__}: {error}") from error

    def _checked_result(self, result: Any) -> StepResult:
        if not isinstance(result, tuple) or len(result) != 5:
            raise self._error("step must return (messages, reward, terminated, truncated, info)")
        messages, reward, terminated, truncated, info = result
        if not _is_finite_number(reward):
            raise self._error(f"reward must be a finite number, got {reward!r}")
        if not isinstance(info, dict):
            raise self._error(f"info must be a dict, got {type(info).__name__}")
        return self._checked_messages(messages), float(reward), bool(terminated), bool(truncated), info

    def _checked_score(self, score: Any) -> tuple[float, dict[str, float]]:
        try:
            reward, parts = read_score(score)
        except TypeError as error:
            raise self._error(f"score_group: {error}") from error
        if not _is_finite_number(reward):
            raise self._error(f"a score must be a finite number, got {reward!r}")
        return reward, self._checked_parts(parts)

    def _checked_parts(self, parts: Any) -> dict[str, float]:
        if not isinstance(parts, dict) or not all(map(_is_finite_number, parts.values())):
            raise self._error(f"info['reward_parts'] must be a dict of finite numbers, got {parts!r:.200}")
        return {str(name): float(value) for name, value in parts.items()}

    def _checked_messages(self, messages: Any) -> tuple[Message, ...]:
        if not isinstance(messages, tuple) or not all(isinstance(message, Message) for message in messages):
            raise self._error(f"messages must be a tuple of envs.Message, got {messages!r:.200}")
        if not all(isinstance(message.content, str) for message in messages):
            raise self._error(f"the content of a message must be text, got {messages!r:.200}")
        longest, most = (
            max((len(message.content) for message in messages), default=0),
            self._config.max_message_characters,
        )
        if longest > most:
            raise self._error(f"a message has {longest} characters, more than rollout.max_message_characters ({most})")
        return messages

    def _error(self, message: str) -> EpisodeError:
        return EpisodeError(Outcome.ENV_ERROR, f"{self._where()}: {message}")

    def _where(self) -> str:
        return f"{self._task.env_id} (seed {self._task.seed}, split {self._task.split})"


def _is_finite_number(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer beyond float
        return False
