"""How does environment code run? Off the event loop, each call in a thread of its own with a deadline.

A thread cannot be killed: one that misses its deadline is abandoned, and its place is given to the next call, so that a
hanging environment costs its own rollouts only. Every failure leaves here as an `EpisodeError` with its outcome.
"""

import asyncio
import math
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from envs.messages import Message, Reply
from envs.registry import make
from envs.text_env import StepResult, TextEnv
from rl.config import RolloutConfig
from rl.data_types import Outcome, Task

Result = TypeVar("Result")


class EpisodeError(Exception):
    """An episode that cannot go on, through no doing of the policy."""

    def __init__(self, outcome: Outcome, message: str) -> None:
        super().__init__(message)
        self.outcome = outcome


class EnvThreads:
    """Bounded threads for environment code."""

    def __init__(self, num_threads: int) -> None:
        self._slots = asyncio.Semaphore(num_threads)

    async def run(self, function: Callable[[], Result], timeout_s: float) -> Result:
        """Run in a daemon thread. Raises `TimeoutError` after `timeout_s`, and whatever the function raises."""
        async with self._slots:
            loop = asyncio.get_running_loop()
            future: asyncio.Future[Result] = loop.create_future()

            def deliver(set_result: Callable[[Any], None], value: Any) -> None:
                if not future.done():
                    set_result(value)

            def call() -> None:
                try:
                    value = function()
                except BaseException as error:  # SystemExit included: it must not end the worker
                    wrapped = RuntimeError("StopIteration") if isinstance(error, StopIteration) else error
                    report(future.set_exception, wrapped)
                else:
                    report(future.set_result, value)

            def report(set_result: Callable[[Any], None], value: Any) -> None:
                if not loop.is_closed():  # an abandoned thread may end after the worker
                    loop.call_soon_threadsafe(deliver, set_result, value)

            threading.Thread(target=call, daemon=True, name="environment").start()
            return await asyncio.wait_for(future, timeout_s)


class Episode:
    """One environment instance playing one task, with deadlines and checked results."""

    def __init__(self, task: Task, threads: EnvThreads, config: RolloutConfig) -> None:
        self._task = task
        self._threads = threads
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

        def reset() -> tuple[TextEnv, tuple[Message, ...]]:
            env = make(self._task.env_id)
            messages, _ = env.reset(seed=self._task.seed, options={**self._task.options, "split": self._task.split})
            return env, messages

        self._env, messages = await self._guarded("reset", reset, self._config.reset_timeout_s)
        return self._checked_messages(messages)

    async def step(self, reply: Reply) -> tuple[tuple[Message, ...], bool, bool]:
        """Messages that follow, terminated, truncated; the reward is added up here. Raises `EpisodeError`."""
        result = await self._guarded("step", lambda: self.env.step(reply), self._config.step_timeout_s)
        messages, reward, terminated, truncated, info = self._checked_result(result)
        self.reward += reward
        low, high = self.env.reward_range
        if not low - 1e-6 <= self.reward <= high + 1e-6:
            raise self._error(f"reward {self.reward} is outside of its declared range [{low}, {high}]")
        self.reward_parts.update(self._checked_parts(info))
        return messages, terminated, truncated

    def close(self) -> None:
        """Let the environment clean up, in a thread nobody waits for."""
        if self._env is not None:
            threading.Thread(target=self._env.close, daemon=True, name="environment-close").start()

    async def _guarded(self, phase: str, function: Callable[[], Result], timeout_s: float) -> Result:
        try:
            return await self._threads.run(function, timeout_s)
        except TimeoutError:
            message = f"{self._where()}: {phase} took longer than {timeout_s} s (rollout.{phase}_timeout_s)"
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

    def _checked_parts(self, info: dict[str, Any]) -> dict[str, float]:
        parts = info.get("reward_parts", {})
        if not isinstance(parts, dict) or not all(map(_is_finite_number, parts.values())):
            raise self._error(f"info['reward_parts'] must be a dict of finite numbers, got {parts!r:.200}")
        return {str(name): float(value) for name, value in parts.items()}

    def _checked_messages(self, messages: Any) -> tuple[Message, ...]:
        if not isinstance(messages, tuple) or not all(isinstance(message, Message) for message in messages):
            raise self._error(f"messages must be a tuple of envs.Message, got {messages!r:.200}")
        if not all(isinstance(message.content, str) for message in messages):
            raise self._error(f"the content of a message must be text, got {messages!r:.200}")
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
