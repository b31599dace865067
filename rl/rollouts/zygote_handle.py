"""How does a worker start a zygote (`rl.rollouts.env_zygote`), fork episodes from it, and learn how they end?"""

import asyncio
import contextlib
import json
import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from envs.loading import LOAD_S
from rl.rollouts.env_zygote import Setup
from rl.rollouts.frames import frame, next_frame, read_answer

logger = logging.getLogger(__name__)
START_S = 60.0
"""Time to start a zygote, in addition to the time to load data."""
END_S = 10.0
"""Maximum time from the end of a process until the zygote has reported it."""
BOOTSTRAP = """
import pickle, sys
sys.path[:] = pickle.load(sys.stdin.buffer)
from rl.rollouts.env_zygote import main
main()
"""
FROM_OUTSIDE = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
"""Signals that code does not cause by what it computes."""
THREADS = (
    "loading %s leaves %d threads running, which forked processes do not have; if its episodes hang, set"
    " environments.ID.process: false"
)


class ProcessEnded(RuntimeError):
    """An episode's process, or its zygote, is gone. `is_from_outside`: not by what the environment did."""

    def __init__(self, message: str, *, is_from_outside: bool) -> None:
        super().__init__(message)
        self.is_from_outside = is_from_outside


@dataclass(frozen=True, slots=True)
class Ready:
    """What a zygote tells when it has loaded its environment."""

    scores_groups: bool
    num_threads: int


class ZygoteHandle:
    """A zygote that starts at once, and, if it died, again when it is needed. Its methods are for one event loop."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._num_forks = 0
        self._ended: dict[int, asyncio.Future[ProcessEnded]] = {}
        self._ready: asyncio.Future[Ready] | None = None
        self._start()

    def _start(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", BOOTSTRAP, str(theirs.fileno())],
                stdin=subprocess.PIPE,
                env={"OMP_NUM_THREADS": "1", **os.environ},
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError), self._process.stdin as stdin:
            stdin.write(pickle.dumps(sys.path) + pickle.dumps(self._setup))

    @property
    def is_ready(self) -> bool:
        return self._ready is not None and self._ready.done() and not self._ready.exception()

    async def ready(self) -> Ready:
        """Wait until the environment is loaded. Raises `ProcessEnded`."""
        if self._socket.fileno() < 0:
            self._start()
        if self._ready is None:
            self._ready = asyncio.get_running_loop().create_future()
            self._ready.add_done_callback(lambda ready: ready.exception())  # read here, in case that nobody waits
            self._socket.setblocking(False)
            asyncio.get_running_loop().add_reader(self._socket, self._hear)
        if self._ready.done():
            return self._ready.result()
        try:
            return await asyncio.wait_for(asyncio.shield(self._ready), LOAD_S + START_S)
        except TimeoutError:
            self._process.kill()
            raise ProcessEnded(f"loading took longer than {LOAD_S + START_S:g} s", is_from_outside=False) from None

    async def fork(self) -> "EpisodeProcess":
        """A new process for an episode. Raises `ProcessEnded`."""
        await self.ready()
        loop = asyncio.get_running_loop()
        self._num_forks += 1
        number, ended = self._num_forks, loop.create_future()
        self._ended[number] = ended
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        try:
            with theirs:
                self._order({"fork": number}, theirs)
            reader, writer = await asyncio.open_connection(sock=ours)
        except BaseException:
            ours.close()
            raise
        return EpisodeProcess(reader, writer, ended, lambda: self._order({"kill": number}))

    def close(self) -> None:
        """End the zygote and all processes of its episodes."""
        with contextlib.suppress(RuntimeError, ValueError):  # there is no loop any more, or it has died
            asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()  # it ends when it sees this
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:  # it still loads
            self._process.kill()
            self._process.wait()
        while self._ended:
            _, ended = self._ended.popitem()
            ended.set_result(ProcessEnded("its process ended with the worker", is_from_outside=True))

    def _order(self, order: dict[str, Any], *descriptors: socket.socket) -> None:
        with contextlib.suppress(OSError):  # it died, which `_hear` hears too
            socket.send_fds(self._socket, [json.dumps(order).encode()], [one.fileno() for one in descriptors])

    def _hear(self) -> None:
        """Take one report, or the end of the zygote."""
        try:
            message = self._socket.recv(65_536)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        if not message:
            return self._died()
        report = json.loads(message)
        if (number := report.pop("ended", None)) is None:
            assert self._ready is not None
            self._ready.set_result(ready := Ready(**report))
            if ready.num_threads > 1:
                logger.warning(THREADS, self._setup.env_id, ready.num_threads - 1)
        else:
            self._ended.pop(number).set_result(self._end_of(**report))

    def _end_of(self, code: int = 1, peak_mib: int = 0, unforked: str = "") -> ProcessEnded:
        """How a process ended, from the report about it."""
        if unforked:
            return ProcessEnded(f"no process could be forked: {unforked}", is_from_outside=True)
        most = self._setup.rollout.env_memory_mib
        peak = f", with {peak_mib} MiB of memory at its peak (rollout.env_memory_mib is {most})" if code < 0 else ""
        return ProcessEnded(f"its process {told_end(code)}{peak}", is_from_outside=-code in FROM_OUTSIDE)

    def _died(self) -> None:
        """Tell everyone who waits."""
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()
        code = self._process.wait()
        is_from_outside = self.is_ready or -code in FROM_OUTSIDE  # once it is ready it runs no code of the environment
        reason = f"the process that its episodes are forked from {told_end(code)}"
        told = ProcessEnded(reason, is_from_outside=is_from_outside)
        waiting, self._ended = list(self._ended.values()), {}
        for ended in waiting:
            ended.set_result(told)
        ready, self._ready = self._ready, None
        if ready is not None and not ready.done():
            ready.set_exception(told)


class EpisodeProcess:
    """The process of one episode, which answers one request after the other."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        ended: "asyncio.Future[ProcessEnded]",
        kill: Callable[[], None],
    ) -> None:
        self._reader, self._writer, self._ended = reader, writer, ended
        self.kill = kill
        ended.add_done_callback(lambda _: writer.close())

    def ask(self, phase: str, *arguments: object) -> None:
        """Send a request; `answer` gives what comes of it."""
        if not self._ended.done():
            self._writer.write(frame((phase, arguments)))

    async def answer(self) -> tuple[str, Any]:
        """What the process says next. Raises `ProcessEnded`, and `FrameError`."""
        try:
            return read_answer(await next_frame(self._reader))
        except (asyncio.IncompleteReadError, ConnectionError):
            raise await self._end() from None

    def close(self, timeout_s: float) -> None:
        """Let it close its environment and end, without waiting for it; it is killed after `timeout_s`."""
        self.ask("close")
        late = asyncio.get_running_loop().call_later(timeout_s, self.kill)
        self._ended.add_done_callback(lambda _: late.cancel())

    async def _end(self) -> ProcessEnded:
        done, _ = await asyncio.wait([self._ended], timeout=END_S)
        return self._ended.result() if done else ProcessEnded("its process closed its channel", is_from_outside=False)


def told_end(code: int) -> str:
    if code >= 0:
        return f"ended with exit status {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
