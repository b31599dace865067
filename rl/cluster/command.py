"""How does a command of ours run on a node of a joined cluster, with resources of its own, and print here?"""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from queue import SimpleQueue

import ray

from rl.cluster.actors import Deadline, start_actor
from rl.cluster.cluster import join
from rl.stop import POLL_S, end_with_parent

STOP_S = 30.0
"""What a command that is stopped has to write its last checkpoint."""


def run_on_cluster(
    address: str, module: Sequence[str], cpus: float, gpus: float, start_timeout_s: float, tell: Callable[[str], None]
) -> int:
    """Run `python -m MODULE ...` on any node that has these resources; `tell` gets each line that it prints.

    Returns its exit code. It ends with this process. Raises `ClusterError` if it has no place after `start_timeout_s`,
    `ActorDied` if it is lost, and `StopRequested` if the run should stop.
    """
    join(address)
    try:
        process = start_actor(CommandProcess, cpus, gpus, None, module)
        try:
            while True:
                deadline = Deadline(start_timeout_s, f"starting {' '.join(module)}", "train.start_timeout_s")
                lines, code = process.call(CommandProcess.poll).wait(deadline)
                for line in lines:
                    tell(line)
                if code is not None:
                    return code
                time.sleep(POLL_S)
        finally:
            process.stop(CommandProcess.stop, STOP_S + 5.0)
    finally:
        ray.shutdown()


class CommandProcess:
    """The actor beside a command: it starts it, and holds what it printed."""

    def __init__(self, module: Sequence[str]) -> None:
        # The module must be found as in this process, whose paths Ray has set.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._child = subprocess.Popen(
            [sys.executable, "-m", *module],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            preexec_fn=end_with_parent,
        )
        self._lines: SimpleQueue[str] = SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def poll(self) -> tuple[list[str], int | None]:
        """What it printed since the last call, and its exit code once it has ended and all was told."""
        is_over = not self._reader.is_alive()
        lines = [self._lines.get() for _ in range(self._lines.qsize())]
        return lines, self._child.wait() if is_over else None

    def stop(self) -> None:
        """Let it write a checkpoint and end."""
        self._child.terminate()
        try:
            self._child.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._child.kill()

    def _read(self) -> None:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            self._lines.put(line.rstrip("\n"))
