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
from rl.rollouts.env_zygote import Setup, end_session
from rl.rollouts.frames import MAX_ANSWER_BYTES, frame, next_frame, read_answer

logger = logging.getLogger(__name__)
START_S = 60.0
"""Time to start a zygote, in addition to the time to load data."""
END_S = 10.0
"""Maximum time from the end of a process until it is reported, and from the kill of a zygote until it is gone."""
AGAIN_S = 0.1
BOOTSTRAP = """
import pickle, sys
sys.path[:] = pickle.load(sys.stdin.buffer)
from rl.rollouts.env_zygote import main
main()
"""
FROM_OUTSIDE = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
"""Signals that code does not cause by what it computes."""
ZYGOTE = "the process that its episodes are forked from"
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
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                process = subprocess.Popen(
                    [sys.executable, "-P", "-c", BOOTSTRAP, str(theirs.fileno())],
                    stdin=subprocess.PIPE,
                    env={"OMP_NUM_THREADS": "1", **os.environ},
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError), process.stdin as stdin:
                stdin.write(pickle.dumps(sys.path) + pickle.dumps(self._setup))
            # Its socket does not tell of its end: what the environment has started may hold the other side open.
            pidfd = os.pidfd_open(process.pid)
        except BaseException:  # no descriptor or no process can be had; what has begun ends with its socket
            ours.close()
            raise
        self._socket, self._process, self._pidfd = ours, process, pidfd  # together: else `ready` would not start anew

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
            asyncio.get_running_loop().add_reader(self._pidfd, self._died)
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
        self._num_forks += 1
        number, ended = self._num_forks, asyncio.get_running_loop().create_future()
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        try:
            with theirs:
                self._order({"fork": number}, theirs)
            self._ended[number] = ended
            reader, writer = await asyncio.open_connection(sock=ours)
        except BaseException:
            ours.close()
            raise
        return EpisodeProcess(reader, writer, ended, lambda: self._end(number))

    def close(self) -> None:
        """End the zygote and all processes of its episodes."""
        if self._socket.fileno() >= 0:
            self._release()
        self._tell(ProcessEnded("its process ended with the worker", is_from_outside=True))

    def _release(self) -> int:
        """End the zygote, if it lives, its episodes and what they have started; returns the zygote's exit code."""
        with contextlib.suppress(RuntimeError):  # there is no loop any more
            for descriptor in (self._socket, self._pidfd):
                asyncio.get_running_loop().remove_reader(descriptor)
        self._socket.close()
        end_session(self._process.pid)  # not waited for yet, so no other session has this id
        os.close(self._pidfd)
        try:
            return self._process.wait(END_S)
        except subprocess.TimeoutExpired:  # the kernel does not let it go
            return -signal.SIGKILL

    def _tell(self, end: ProcessEnded) -> None:
        waiting, self._ended = list(self._ended.values()), {}
        for ended in waiting:
            ended.set_result(end)

    def _order(self, order: dict[str, Any], *descriptors: socket.socket) -> None:
        """Raises `ProcessEnded` if too many orders wait."""
        try:
            socket.send_fds(self._socket, [json.dumps(order).encode()], [one.fileno() for one in descriptors])
        except BlockingIOError:
            raise ProcessEnded(f"{ZYGOTE} does not take its orders", is_from_outside=True) from None
        except ConnectionError:
            return  # it is ending, which `_died` hears

    def _end(self, number: int) -> None:
        """End an episode's process, and the zygote if it does not do so: it hangs, and so would all later episodes."""
        self._kill(number)
        asyncio.get_running_loop().call_later(END_S, self._replace, number)

    def _replace(self, number: int) -> None:
        if number in self._ended:  # so it is of the zygote that runs now
            logger.warning("%s: %s ended none for %g s and is replaced", self._setup.env_id, ZYGOTE, END_S)
            self._process.kill()  # `_died` tells those in flight, and the next one starts another zygote

    def _kill(self, number: int) -> None:
        if number not in self._ended:
            return
        try:
            self._order({"kill": number})
        except ProcessEnded:
            asyncio.get_running_loop().call_later(AGAIN_S, self._kill, number)

    def _hear(self) -> bool:
        """Take one report; returns whether there was one."""
        try:
            message = self._socket.recv(65_536)
        except BlockingIOError:
            return False
        except ConnectionError:
            message = b""
        if not message:
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._socket)
            loop.call_later(END_S, self._process.kill)  # it ends, or it has lost its socket and is of no use
            return False
        report = json.loads(message)
        if (number := report.pop("ended", None)) is None:
            assert self._ready is not None
            self._ready.set_result(ready := Ready(**report))
            if ready.num_threads > 1:
                logger.warning(THREADS, self._setup.env_id, ready.num_threads - 1)
        else:
            self._ended.pop(number).set_result(self._end_of(**report))
        return True

    def _end_of(self, code: int = 1, peak_mib: int = 0, unforked: str = "") -> ProcessEnded:
        """How a process ended, from the report about it."""
        if unforked:
            return ProcessEnded(f"no process could be forked: {unforked}", is_from_outside=True)
        most = self._setup.rollout.env_memory_mib
        peak = f", with {peak_mib} MiB of memory at its peak (rollout.env_memory_mib is {most})" if code < 0 else ""
        return ProcessEnded(f"its process {told_end(code)}{peak}", is_from_outside=-code in FROM_OUTSIDE)

    def _died(self) -> None:
        """Tell everyone who waits."""
        while self._hear():
            pass
        code = self._release()
        is_from_outside = self.is_ready or -code in FROM_OUTSIDE  # once it is ready it runs no code of the environment
        self._tell(told := ProcessEnded(f"{ZYGOTE} {told_end(code)}", is_from_outside=is_from_outside))
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
            return read_answer(await next_frame(self._reader, MAX_ANSWER_BYTES))
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
