"""How does a rollout call its environment, with a deadline for each call and a check of each result?

Every failure is raised as an `EnvSessionError` with its outcome. `envs.results` defines valid results.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from envs.errors import error_text, is_ours
from envs.event_loop import DeadlineError
from envs.messages import Message, Reply, ToolSpec
from envs.options_text import options_text
from envs.registry import make
from envs.results import check_attributes, check_opened, check_total, read_opening, read_scores, read_step
from envs.session import Opened, raised, reason_of
from envs.text_env import TextEnv
from rl.config.rollout import RolloutConfig
from rl.data_types import Outcome, Task
from rl.rollouts.env_runner import EnvRunner

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

    def __init__(self, task: Task, runner: EnvRunner, config: RolloutConfig) -> None:
        self._task = task
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

    async def ask(self, question: Callable[[], Read]) -> Read:
        """The result of `question`, which creates an environment, so it has the deadline of a reset.

        Raises `EnvSessionError`.
        """
        return await self._guarded("reset", question, self._config.reset_timeout_s)

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
        try:
            return await self._runner.run(function, timeout_s, is_async=is_async)
        except DeadlineError:
            key = "reset_timeout_s" if phase == "reset" else "step_timeout_s"
            message = f"{self._where()}: {phase} took longer than {timeout_s} s (rollout.{key})"
            raise EnvSessionError(Outcome.ENV_TIMEOUT, message) from None
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
        return EnvSessionError(Outcome.ENV_ERROR, f"{self._where()}: {message}")

    def _where(self) -> str:
        return f"{self._task.env_id} (seed {self._task.seed}, split {self._task.split})"
