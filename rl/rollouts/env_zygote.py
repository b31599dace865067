"""The process that an environment's episodes are forked from: it has loaded the environment's code and data once.

A worker starts one for each environment that runs in processes (`rl.rollouts.env_processes`), so that an episode costs
a fork and no start-up. It holds no torch, vLLM or Ray, and has one thread, because it does nothing but fork. An order
is JSON: `{"fork": NUMBER}`, with the descriptor of the episode's channel, or `{"kill": NUMBER}`. It reports the end of
each process. When a process ends, so do the processes that the environment has started in its group; when the worker
or the zygote ends, so do all of the zygote's session.
"""

import contextlib
import fcntl
import gc
import json
import os
import pickle
import select
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from envs.event_loop import LOOP_THREAD
from envs.facts import facts
from envs.loading import load_data
from envs.registry import factory_of
from envs.sandbox.layers import die_with_parent
from rl.config.rollout import RolloutConfig
from rl.rollouts.episode_process import play_episode
from rl.run_log import join_run_log

MAX_ORDER_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Setup:
    """What a zygote is started for."""

    env_id: str
    every_options: Sequence[Mapping[str, Any]]
    """Sets of options that its tasks may have."""
    rollout: RolloutConfig
    run_dir: Path


def main() -> None:
    """Reads its `Setup` from stdin; the argument is the number of the socket to the worker."""
    worker = socket.socket(fileno=int(sys.argv[1]))
    setup: Setup = pickle.load(sys.stdin.buffer)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    join_run_log(setup.run_dir, "environment")
    with ending_with(worker):
        ready = {"scores_groups": load(setup.env_id, setup.every_options), "num_threads": num_threads()}
    worker.send(json.dumps(ready).encode())
    gc.collect()
    gc.freeze()  # forks share these pages
    Zygote(worker, setup.rollout).serve()


@contextlib.contextmanager
def ending_with(worker: socket.socket) -> Iterator[None]:
    """Inside the block this process, whatever it does, ends with the worker, which says nothing before it is told.

    The kernel sends SIGIO, which ends a process. PR_SET_PDEATHSIG would follow the thread that started this process.
    """
    flags = fcntl.fcntl(worker, fcntl.F_GETFL)
    fcntl.fcntl(worker, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(worker, fcntl.F_SETFL, flags | os.O_ASYNC)
    if select.select([worker], [], [], 0)[0]:  # it ended before
        os._exit(0)
    try:
        yield
    finally:
        fcntl.fcntl(worker, fcntl.F_SETFL, flags)


def num_threads() -> int:
    """Threads of this process, apart from our own event loop, which nothing runs on."""
    own = sum(thread.name == LOOP_THREAD for thread in threading.enumerate())
    return len(os.listdir("/proc/self/task")) - own


def load(env_id: str, every_options: Sequence[Mapping[str, Any]]) -> bool:
    """Load all that episodes have in common; returns whether the environment scores groups.

    What fails here fails again in the episodes, which report it.
    """
    with contextlib.suppress(BaseException):
        factory_of(env_id)  # in the main thread: its modules may set signal handlers
    for options in every_options:
        load_data(env_id, options)
    scores_groups = False
    with contextlib.suppress(BaseException):
        scores_groups = facts(env_id).scores_groups  # makes one, which fills caches that all forks share
    if "envs.sandbox.run" in sys.modules:
        with contextlib.suppress(Exception):
            sys.modules["envs.sandbox.run"].level_here()  # starts the sandbox's zygote, for all episodes
    return scores_groups


class Zygote:
    """Forks and buries the processes of episodes."""

    def __init__(self, worker: socket.socket, rollout: RolloutConfig) -> None:
        self._worker = worker
        self._rollout = rollout
        self._poll = select.poll()
        self._poll.register(worker, select.POLLIN)
        self._processes: dict[int, tuple[int, int]] = {}
        """Number and process id by the descriptor that tells of the end."""

    def serve(self) -> NoReturn:
        while True:
            for descriptor, _ in self._poll.poll():
                if descriptor in self._processes:
                    self._bury(descriptor)
                else:
                    self._take_order()

    def _take_order(self) -> None:
        message, descriptors = b"", []
        with contextlib.suppress(OSError):
            message, descriptors, _, _ = socket.recv_fds(self._worker, MAX_ORDER_BYTES, 1)
        if not message:  # the worker has ended
            end_session(os.getpid())
            os._exit(0)
        order = json.loads(message)
        if "fork" in order:
            self._fork(order["fork"], socket.socket(fileno=descriptors[0]))
        for number, process in self._processes.values():
            if number == order.get("kill"):
                os.kill(process, signal.SIGKILL)  # not buried yet, so no other process has this id

    def _fork(self, number: int, channel: socket.socket) -> None:
        own = os.getpid()
        try:
            process = os.fork()
        except OSError as error:
            self._report({"ended": number, "unforked": str(error)})
            return channel.close()
        if process == 0:
            self._become_episode(own, channel)
        channel.close()
        with contextlib.suppress(OSError):
            os.setpgid(process, process)  # both do it, so that neither is too early
        handle = os.pidfd_open(process)
        self._processes[handle] = (number, process)
        self._poll.register(handle, select.POLLIN)

    def _become_episode(self, parent: int, channel: socket.socket) -> NoReturn:
        code = 1
        try:
            os.setpgid(0, 0)
            die_with_parent()
            if os.getppid() == parent:
                self._worker.close()
                for descriptor in self._processes:
                    os.close(descriptor)
                play_episode(channel, self._rollout)
                code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(BaseException):
                sys.stdout.flush()
            os._exit(code)

    def _bury(self, handle: int) -> None:
        number, process = self._processes.pop(handle)
        self._poll.unregister(handle)
        os.close(handle)
        end_group(process)
        _, status, usage = os.wait4(process, 0)
        code = os.waitstatus_to_exitcode(status)
        self._report({"ended": number, "code": code, "peak_mib": usage.ru_maxrss // 1024})

    def _report(self, report: Mapping[str, object]) -> None:
        with contextlib.suppress(OSError):  # the worker has ended: the next order says so
            self._worker.send(json.dumps(report).encode())


def end_group(process: int) -> None:
    """Kill a process that was not buried yet, and the processes that it started in its group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process, signal.SIGKILL)


def end_session(session: int) -> None:
    """Kill the processes of a session, apart from this one: a zygote, its episodes and what these have started."""
    for process in (int(name) for name in os.listdir("/proc") if name.isdecimal()):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getsid(process) == session and process != os.getpid():
                os.kill(process, signal.SIGKILL)
