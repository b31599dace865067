"""What does one environment do while it plays one task? Its calls with deadlines, its results checked.

Every failure leaves here as an `EnvSessionError` with its outcome.
"""

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from envs.messages import Message, Reply
from envs.registry import make
from envs.text_env import StepResult, TextEnv, read_score
from rl.config.experiment import RolloutConfig
from rl.data_types import Outcome, Task
from rl.rollouts.env_runner import EnvRunner


class EnvSessionError(Exception):
    """An episode that cannot go on, through no doing of the policy."""

    def __init__(self, outcome: Outcome, message: str) -> None:
        super().__init__(message)
        self.outcome = outcome


class EnvSession:
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
        """The opening messages. Raises `EnvSessionError`."""

        def reset() -> Any:
            self._env = make(self._task.env_id)
            return self._env.reset(seed=self._task.seed, options={**self._task.options, "split": self._task.split})

        result = await self._guarded("reset", reset, self._config.reset_timeout_s)
        if not isinstance(result, tuple) or len(result) != 2:
            raise self._error("reset must return (messages, info)")
        return self._checked_messages(result[0])

    async def step(self, reply: Reply) -> tuple[tuple[Message, ...], bool, bool]:
        """Messages that follow, terminated, truncated; the reward is added up here. Raises `EnvSessionError`."""
        timeout_s, is_async = self._config.step_timeout_s, self.env.is_async
        result = await self._guarded("step", lambda: self.env.step(reply), timeout_s, is_async=is_async)
        messages, reward, terminated, truncated, info = self._checked_result(result)
        self._add(reward, self._checked_parts(info.get("reward_parts", {})))
        return messages, terminated, truncated

    async def score_group(self, conversations: Sequence[tuple[Message, ...]]) -> list[tuple[float, dict[str, float]]]:
        """What each member earns beside its own reward. Raises `EnvSessionError`."""
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
        """Raises `EnvSessionError` for a reward that the environment said it never gives."""
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
            raise EnvSessionError(Outcome.ENV_TIMEOUT, message) from None
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

    def _error(self, message: str) -> EnvSessionError:
        return EnvSessionError(Outcome.ENV_ERROR, f"{self._where()}: {message}")

    def _where(self) -> str:
        return f"{self._task.env_id} (seed {self._task.seed}, split {self._task.split})"


def _is_finite_number(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer beyond float
        return False
