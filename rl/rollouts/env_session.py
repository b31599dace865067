"""How does a rollout call its environment, with a deadline for each call and a check of each result?

Every failure is raised as an `EnvSessionError` with its outcome. `envs.results` defines valid results.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from envs.errors import error_text, is_ours
from envs.event_loop import DeadlineError
from envs.facts import facts
from envs.messages import Message, Reply, ToolSpec
from envs.options_text import options_text
from envs.registry import make
from envs.results import check_attributes, check_opened, check_total, read_opening, read_scores, read_step
from envs.session import Opened, raised, reason_of
from envs.text_env import TextEnv
from rl.config.rollout import RolloutConfig
from rl.data_types import Outcome, Task
from rl.rollouts.env_runner import Runner

Read = TypeVar("Read")


class EnvSessionError(Exception):
    """An episode cannot go on, and the policy did not cause this."""

    def __init__(self, outcome: Outcome, message: str) -> None:
        super().__init__(message)
        self.outcome = outcome


class EnvSession:
    """One environment instance playing one task, with deadlines and checked results.

    The total is checked against `reward_range` when the environment ends the episode. A caller that truncates the
    episode calls `check_total`.
    """

    def __init__(
        self, task: Task, runner: Runner, config: RolloutConfig, spent: Callable[[float], None] = lambda cpu_s: None
    ) -> None:
        """`spent` is told the CPU seconds of each synchronous call that ended in time."""
        self._task = task
        self._spent = spent
        self._runner = runner
        self._config = config
        self._opened = Opened()
        self._env: TextEnv | None = None
        self.tools: tuple[ToolSpec, ...] = ()
        self.max_turns = 1
        """Both as they were checked after `reset`, because an environment may compute them anew at each access."""
        self.reward = 0.0
        self.reward_parts: dict[str, float] = {}

    @property
    def env(self) -> TextEnv:
        assert self._env is not None, "reset comes first"
        return self._env

    async def reset(self) -> tuple[Message, ...]:
        """The opening messages. Raises `EnvSessionError`."""

        def reset() -> object:
            env = make(self._task.env_id)
            if not self._opened.put(env):  # the deadline passed meanwhile, and `close` found nothing to close
                self._leave(env)
                return None
            self._env = env
            check_attributes(env)
            return env.reset(seed=self._task.seed, options={**self._task.options, "split": self._task.split})

        result = await self._guarded("reset", reset, self._config.reset_timeout_s)
        opening, _ = self._read(lambda: read_opening(result, self._config.max_message_characters))
        self.tools, self.max_turns = self._read(lambda: check_opened(self.env))
        return opening

    async def step(self, reply: Reply) -> tuple[tuple[Message, ...], bool, bool]:
        """The following messages, terminated, truncated. Rewards are summed here. Raises `EnvSessionError`."""
        timeout_s, is_async = self._config.step_timeout_s, self._read(lambda: self.env.is_async)
        result = await self._guarded("step", lambda: self.env.step(reply), timeout_s, is_async=is_async)
        messages, reward, terminated, truncated, info = self._read(
            lambda: read_step(result, self._config.max_message_characters)
        )
        self.reward += reward
        self.reward_parts.update(info.get("reward_parts", {}))
        if terminated or truncated:
            self.check_total()
        return messages, terminated, truncated

    async def score_group(self, conversations: Sequence[tuple[Message, ...]]) -> list[tuple[float, dict[str, float]]]:
        """Each member's score, which is added to its own reward. Raises `EnvSessionError`."""
        call = lambda: self.env.score_group(conversations)  # noqa: E731
        scores = await self._guarded("score_group", call, self._config.step_timeout_s)
        return self._read(lambda: read_scores(scores, len(conversations)))

    async def compares(self) -> bool:
        """Whether the environment scores groups. Making it for this has the deadline of a reset.

        Raises `EnvSessionError`.
        """
        return await self._guarded(
            "reset", lambda: facts(self._task.env_id).scores_groups, self._config.reset_timeout_s
        )

    def check_total(self, total: float | None = None) -> None:
        """Raise `EnvSessionError` if a total, by default this episode's, is outside of the declared `reward_range`.

        Call it when the episode is over: a later step may take back the reward of an earlier one.
        """
        self._read(lambda: check_total(self.reward if total is None else total, self.env.reward_range))

    def close(self) -> None:
        """Close the environment once, if it has something to clean up, in a thread that is not waited for."""
        env = self._opened.end()
        if env is not None:
            self._leave(env)

    def _leave(self, env: TextEnv) -> None:
        try:
            has_close = env.has_close
        except BaseException:  # a property of the environment; its `close` may still work
            has_close = True
        if has_close:
            self._runner.leave(lambda: env.close())  # in the thread: accessing `close` may run its code too

    async def _guarded(
        self, phase: str, function: Callable[[], object], timeout_s: float, *, is_async: bool = False
    ) -> Any:
        timed = _Timed(function)
        try:
            result = await self._runner.run(timed, timeout_s, is_async=is_async)
            self._spent(timed.cpu_s)
            return result
        except DeadlineError:
            raise took_too_long(self._task, phase, timeout_s) from None
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError):
                raise
            what = error_text(error) if is_ours(error) else f"{phase} raised {raised(error)}"
            raise self._error(what + (self._options_text(error) if phase == "reset" else "")) from error

    def _options_text(self, error: BaseException) -> str:
        return options_text(self._env, self._task.options, error) if self._env else ""

    def _read(self, read: Callable[[], Read]) -> Read:
        try:
            return read()
        except BaseException as error:  # reading may run the environment's code; SystemExit would end the worker
            raise self._error(reason_of(error)) from error

    def _error(self, message: str) -> EnvSessionError:
        return EnvSessionError(Outcome.ENV_ERROR, f"{name_of(self._task)}: {message}")


class _Timed:
    """A function that takes its own CPU time, in seconds of the thread that runs it."""

    def __init__(self, function: Callable[[], object]) -> None:
        self._function = function
        self.cpu_s = 0.0

    def __call__(self) -> object:
        started = time.thread_time()
        try:
            return self._function()
        finally:
            self.cpu_s = time.thread_time() - started


def took_too_long(task: Task, phase: str, timeout_s: float) -> EnvSessionError:
    """The error of a call that missed its deadline."""
    key = "reset_timeout_s" if phase == "reset" else "step_timeout_s"
    message = f"{name_of(task)}: {phase} took longer than {timeout_s} s (rollout.{key})"
    return EnvSessionError(Outcome.ENV_TIMEOUT, message)


def name_of(task: Task) -> str:
    """Which task of which environment, for errors."""
    return f"{task.env_id} (seed {task.seed}, split {task.split})"
