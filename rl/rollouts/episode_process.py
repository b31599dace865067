"""What runs in the process of one episode? The worker's requests for one environment, one after the other.

The process is forked from one that has loaded the environment (`rl.rollouts.env_zygote`). Calls run in its main thread,
where signal handlers work, and between them its event loop goes on. A call that hangs is not stopped here: the worker
lets the process be killed.
"""

import asyncio
import contextlib
import inspect
import json
import os
import pickle
import resource
import socket
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from envs.event_loop import Started
from envs.messages import Message, Reply, ToolSpec
from envs.session import reason_of
from rl.config.rollout import RolloutConfig
from rl.data_types import Outcome, Task
from rl.rollouts.env_runner import later, quietly, waitable
from rl.rollouts.env_session import EnvSession, EnvSessionError, name_of
from rl.rollouts.frames import frame, next_frame

RESERVE_BYTES = 64 * 2**20
"""What a process whose memory is used up may take in addition, to say so."""
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def play_episode(channel: socket.socket, config: RolloutConfig) -> None:
    """Serve the worker until it closes the channel or the environment is closed."""
    np.random.seed()  # as `random` does itself: forks must not all draw the same numbers
    if config.env_memory_mib is not None:
        bound_memory(config.env_memory_mib * 2**20)
    channel.setblocking(False)
    asyncio.run(_Episode(config).serve(channel))


class _Episode:
    """The session of the environment, and its answers in plain data."""

    def __init__(self, config: RolloutConfig) -> None:
        self._config = config
        self._runner = _HereRunner(config.env_memory_mib, lambda: self._say("waiting"))
        self._session: EnvSession | None = None

    async def serve(self, channel: socket.socket) -> None:
        reader, self._writer = await asyncio.open_connection(sock=channel)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):  # the worker has ended
            while True:
                phase, arguments = pickle.loads(await next_frame(reader))
                if phase == "close":
                    return await self._close()
                try:
                    self._say("done", await getattr(self, phase)(*arguments))
                except EnvSessionError as failure:
                    self._say("failed", (str(failure.outcome), str(failure)))
                except BaseException as error:  # of a property, such as SystemExit
                    told = f"{name_of(self._task)}: {reason_of(error)}"
                    self._say("failed", (str(Outcome.ENV_ERROR), told))
                await self._writer.drain()

    async def reset(self, task: Task) -> tuple[Any, ...]:
        self._task, self._session = task, EnvSession(task, self._runner, self._config)
        opening = await self._session.reset()
        return opening, tuple(map(plain_tool, self._session.tools)), self._session.max_turns, self._range()

    async def step(self, reply: Reply) -> tuple[Any, ...]:
        assert self._session is not None, "reset comes first"
        following, terminated, truncated = await self._session.step(reply)
        total = self._session.reward, self._session.reward_parts
        return following, *total, terminated, truncated

    async def score_group(self, conversations: Sequence[tuple[Message, ...]]) -> list[dict[str, float]]:
        assert self._session is not None, "reset comes first"
        return [parts for _, parts in await self._session.score_group(conversations)]

    async def _close(self) -> None:
        if self._session is not None:
            self._session.close()
        await self._runner.finish()

    def _say(self, kind: str, value: object = None) -> None:
        self._writer.write(frame((kind, value)))

    def _range(self) -> tuple[float, float]:
        assert self._session is not None
        low, high = self._session.env.reward_range
        return float(low), float(high)


class _HereRunner:
    """Runs each call at once, in this thread; the deadline of a synchronous call is the worker's matter."""

    def __init__(self, memory_mib: int | None, say_waiting: Callable[[], None]) -> None:
        self._memory_mib = memory_mib
        self._say_waiting = say_waiting
        self._left: list[Callable[[], object]] = []

    async def run(self, function: Callable[[], object], timeout_s: float, *, is_async: bool = False) -> Any:
        try:
            value = later(function) if is_async else function()
            return await self._awaited(value, timeout_s) if inspect.isawaitable(value) else value
        except MemoryError as error:
            if self._memory_mib is None:
                raise
            _free_reserve()
            told = f"more than the {self._memory_mib} MiB of rollout.env_memory_mib"
            raise MemoryError(told) from error
        except BaseException as error:
            if (told := waitable(error)) is error:
                raise
            raise told from None

    async def _awaited(self, awaitable: Any, timeout_s: float) -> Any:
        self._say_waiting()
        loop = asyncio.get_running_loop()
        started = Started(awaitable, loop, loop)
        started.begin()
        try:
            return await started.result(timeout_s, extended=self._say_waiting)
        finally:
            if started.future.cancelled():
                started.cancel()

    def leave(self, function: Callable[[], object]) -> None:
        self._left.append(function)

    async def finish(self) -> None:
        """Run what was left."""
        for function in self._left:
            with contextlib.suppress(BaseException):  # nobody looks at what it raises
                value = function()
                if inspect.isawaitable(value):
                    await quietly(value)


def plain_tool(tool: ToolSpec) -> ToolSpec:
    """The tool with parameters of plain data; they are JSON, as was checked."""
    return replace(tool, parameters=json.loads(json.dumps(dict(tool.parameters))))


def bound_memory(most_bytes: int) -> None:
    """Let this process allocate at most this much more than it has now.

    The bound is on private writable memory: address space that is reserved only, as by some runtimes, is not counted.
    """
    held = int(Path("/proc/self/statm").read_text().split()[5]) * PAGE_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (held + most_bytes, held + most_bytes + RESERVE_BYTES))


def _free_reserve() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
