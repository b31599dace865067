"""How can code that may hang answer questions? In processes that are killed when an answer takes too long.

This is for libraries that can hang, or whose own time limits work only in a main thread. A process answers one question
at a time. A worker is a script that writes `ready` and then a line of JSON for each line of JSON that it reads. A
worker starts with the first question that needs it, and ends with this process, however this process ends: the kernel
kills it (`PR_SET_PDEATHSIG`).
"""

import contextlib
import json
import os
import queue
import selectors
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rewards.queue_clock import in_queue

START_DEADLINE_S = 60.0
BOOTSTRAP = """
import ctypes, os, runpy, signal, sys
host, script = int(sys.argv[1]), sys.argv[2]
try:
    ctypes.CDLL(None).prctl(1, int(signal.SIGKILL), 0, 0, 0)
except AttributeError:
    pass
if os.getppid() == host:
    runpy.run_path(script, run_name="__main__")
"""
"""Requests SIGKILL for the end of the host (PR_SET_PDEATHSIG is 1), then runs the script, unless the host has already
ended. On systems without prctl, a worker ends at its next read."""
STARTER = ThreadPoolExecutor(1, thread_name_prefix="worker-starter")
"""PR_SET_PDEATHSIG fires when the *thread* that started the worker ends, so one that lives as long as the process
starts all workers."""


class WorkerError(RuntimeError):
    """No worker process could be started. The policy never causes this."""


class WorkerPool:
    """At most `num` processes of `script`, run by `python`; `hint` says what to try if one does not start."""

    def __init__(self, script: Path, num: int, hint: str, python: str = sys.executable) -> None:
        self.script = script
        self._start = lambda: _Worker(python, script, hint)
        self._idle: queue.LifoQueue[_Worker | None] = queue.LifoQueue()  # LIFO: starts no more workers than needed
        for _ in range(num):
            self._idle.put(None)  # a place for a worker that has not been started

    def ask(self, question: Any, deadline_s: float) -> Any:
        """The answer, or None if there is none within `deadline_s` after a worker takes the question.

        Waiting for an idle worker, and for one to start, does not count, neither here nor towards the deadline of the
        environment that asks. Raises `WorkerError`.
        """
        with in_queue():
            worker = self._idle.get()
        answer = None
        try:
            if worker is None:
                with in_queue():
                    worker = self._start()
            answer = worker.ask(question, deadline_s)
        finally:
            if worker and answer is None:  # it may still be busy with this question
                worker.kill()
            self._idle.put(worker if answer is not None else None)
        return json.loads(answer) if answer else None


class _Worker:
    def __init__(self, python: str, script: Path, hint: str) -> None:
        try:
            self._process = STARTER.submit(_start_process, python, script).result()
        except OSError as error:
            raise WorkerError(f"no process of {script.name} could be started: {error}") from error
        if self._read_line(START_DEADLINE_S) != b"ready":
            self.kill()
            raise WorkerError(f"the process of {script.name} did not start; {hint}")

    def ask(self, question: Any, deadline_s: float) -> bytes | None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return None
        return self._read_line(deadline_s)

    def kill(self) -> None:
        with contextlib.suppress(BrokenPipeError), self._process:  # exiting closes the pipes and waits for the end
            self._process.kill()

    def _read_line(self, deadline_s: float) -> bytes | None:
        assert self._process.stdout is not None
        line, deadline = b"", time.monotonic() + deadline_s
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while (left_s := deadline - time.monotonic()) > 0:
                if selector.select(left_s):
                    chunk = os.read(self._process.stdout.fileno(), 65_536)
                    line += chunk
                    if not chunk or line.endswith(b"\n"):
                        return line.strip() or None
        return None


def _start_process(python: str, script: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [python, "-P", "-c", BOOTSTRAP, str(os.getpid()), str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONHASHSEED": "0"},  # all workers of a pool give equal answers
        start_new_session=True,
    )
