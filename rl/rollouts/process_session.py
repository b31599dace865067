"""How does a rollout call an environment that has a process of its own?

As `rl.rollouts.env_session.EnvSession` does, which runs at the other end and forms every error but those that are told
here: a missed deadline and an end of the process. Results are validated there and here, by the same functions.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from envs.errors import cut
from envs.event_loop import DeadlineError
from envs.messages import Message, Reply, ToolSpec
from envs.results import check_total, read_opening, read_scores, read_step, read_tools
from envs.session import reason_of
from rl.config.rollout import RolloutConfig
from rl.data_types import Outcome, Task
from rl.rollouts.env_runner import within
from rl.rollouts.env_session import EnvSessionError, name_of, took_too_long
from rl.rollouts.frames import FrameError
from rl.rollouts.zygote_handle import EpisodeProcess, ProcessEnded, ZygoteHandle

Read = TypeVar("Read")
GRACE_S = 2.0
"""Time for a process to say itself that something that it awaited has missed its deadline."""
MAX_ERROR_CHARACTERS = 20_000


class ProcessSession:
    """One task, played by an environment in a process of its own. For the members see `EnvSession`."""

    def __init__(self, task: Task, zygote: ZygoteHandle, slots: asyncio.Semaphore, config: RolloutConfig) -> None:
        """`slots` bounds how many processes compute at the same time."""
        self._task = task
        self._zygote = zygote
        self._slots = slots
        self._config = config
        self._process: EpisodeProcess | None = None
        self._range = (0.0, 1.0)
        self.tools: tuple[ToolSpec, ...] = ()
        self.max_turns = 1
        self.reward = 0.0
        self.reward_parts: dict[str, float] = {}

    async def reset(self) -> tuple[Message, ...]:
        result = await self._call("reset", self._config.reset_timeout_s, self._task)

        def read() -> tuple[Message, ...]:
            opening, tools, max_turns, self._range = result
            self.tools, self.max_turns = read_tools(tools), int(max_turns)
            return read_opening((opening, {}), self._config.max_message_characters)[0]

        return self._read(read)

    async def step(self, reply: Reply) -> tuple[tuple[Message, ...], bool, bool]:
        result = await self._call("step", self._config.step_timeout_s, reply)

        def read() -> tuple[tuple[Message, ...], bool, bool]:
            following, total, parts, *ends = result
            checked = (following, total, *ends, {"reward_parts": parts})
            messages, self.reward, terminated, truncated, info = read_step(checked, self._config.max_message_characters)
            self.reward_parts = info["reward_parts"]
            return messages, terminated, truncated

        return self._read(read)

    async def score_group(self, conversations: Sequence[tuple[Message, ...]]) -> list[tuple[float, dict[str, float]]]:
        parts = await self._call("score_group", self._config.step_timeout_s, conversations)
        return self._read(lambda: read_scores(parts, len(conversations)))

    async def compares(self) -> bool:
        try:
            return (await self._zygote.ready()).scores_groups
        except ProcessEnded as end:
            raise self._ended("reset", end) from None

    def check_total(self, total: float | None = None) -> None:
        self._read(lambda: check_total(self.reward if total is None else total, self._range))

    def close(self) -> None:
        if self._process is not None:
            self._process.close(self._config.step_timeout_s)
            self._process = None

    async def _call(self, phase: str, timeout_s: float, *arguments: object) -> Any:
        try:
            kind, value = await self._answer(phase, timeout_s, *arguments)
        except DeadlineError:
            raise took_too_long(self._task, phase, timeout_s) from None
        except ProcessEnded as end:
            raise self._ended(phase, end) from None
        except FrameError as error:
            raise self._error(f"{phase}: {error}") from None
        if kind == "failed":
            outcome, told = value
            raise EnvSessionError(Outcome(outcome), cut(str(told), MAX_ERROR_CHARACTERS))
        return value

    async def _answer(self, phase: str, timeout_s: float, *arguments: object) -> tuple[str, Any]:
        """Kind and value of the answer. A process that does not answer in time, or not as it should, is killed."""
        if self._process is None:
            await self._zygote.ready()
        async with contextlib.AsyncExitStack() as slot:  # before the deadline: waiting for a slot does not count
            await slot.enter_async_context(self._slots)
            process = self._process = self._process or await self._zygote.fork()
            process.ask(phase, *arguments)
            try:
                answer = await within(process.answer(), timeout_s)
                while answer[0] == "waiting":  # once, and again whenever waiting in a queue has extended the deadline
                    await slot.aclose()
                    answer = await within(process.answer(), timeout_s + GRACE_S)
                return answer
            except (DeadlineError, FrameError):
                process.kill()
                raise

    def _ended(self, phase: str, end: ProcessEnded) -> EnvSessionError:
        outcome = Outcome.INFRA_ERROR if end.is_from_outside else Outcome.ENV_ERROR
        return EnvSessionError(outcome, f"{name_of(self._task)}: {end}, during {phase}")

    def _error(self, message: str) -> EnvSessionError:
        return EnvSessionError(Outcome.ENV_ERROR, f"{name_of(self._task)}: {message}")

    def _read(self, read: Callable[[], Read]) -> Read:
        try:
            return read()
        except Exception as error:
            raise self._error(reason_of(error)) from error
