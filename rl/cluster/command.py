"""How does a command of ours run on nodes of a joined cluster, with the learner's resources, and print here?"""

import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from queue import SimpleQueue

import ray

from rl.cluster.actors import Actor, Deadline, start_actor, stop_together, wait_together
from rl.cluster.cluster import join
from rl.cluster.network import choose_network_interface, meeting_point
from rl.cluster.rank_variables import GRACE_S, RankVariables, exit_code_of_all
from rl.config.experiment import ExperimentConfig
from rl.stop import POLL_S, end_with_parent


def run_on_cluster(address: str, module: Sequence[str], config: ExperimentConfig, tell: Callable[[str], None]) -> int:
    """Run `python -m MODULE ...` as the ranks of the learner, with their resources, on any nodes that have these.

    `tell` gets each line that they print. Returns their exit code. They end with this process; if one fails, the others
    have `GRACE_S` seconds to end. Raises `ClusterError` if one has no place after `train.start_timeout_s`, `ActorDied`
    if one is lost, and `StopRequested` if the run should stop.
    """
    learner = config.learner
    join(address)
    try:
        processes = [start_actor(CommandProcess, learner.cpus, learner.gpus, None) for _ in range(learner.num_ranks)]
        try:
            limit = Deadline(config.train.start_timeout_s, f"starting {' '.join(module)}", "train.start_timeout_s")
            meeting = processes[0].call(CommandProcess.meeting_point).as_argument()
            ranks = [(rank, learner.num_ranks) for rank in range(learner.num_ranks)]
            interface = config.ray.network_interface
            calls = [
                process.call(CommandProcess.start, module, rank, meeting, interface)
                for process, rank in zip(processes, ranks, strict=True)
            ]
            wait_together(calls, limit)
            return _watched(processes, limit, tell)
        finally:
            # They write a last checkpoint, which takes as long as one of the learner's may.
            stop_together(processes, CommandProcess.stop, config.train.update_timeout_s)
    finally:
        ray.shutdown()


def _watched(processes: Sequence[Actor["CommandProcess"]], limit: Deadline, tell: Callable[[str], None]) -> int:
    """Wait until all have ended, or until one has failed and the others had their time; the exit code of all."""
    codes: list[int | None] = [None for _ in processes]
    failed_at = math.inf
    while None in codes and time.monotonic() < failed_at + GRACE_S:
        for rank, process in enumerate(processes):
            lines, codes[rank] = process.call(CommandProcess.poll).wait(replace(limit, started=time.monotonic()))
            for line in lines:
                tell(line)
        if any(codes):
            failed_at = min(failed_at, time.monotonic())
        time.sleep(POLL_S)
    return exit_code_of_all(code or 0 for code in codes)


class CommandProcess:
    """The actor beside a command: it starts it, and holds what it printed."""

    _child: subprocess.Popen[str] | None = None

    def meeting_point(self) -> str:
        """An address on this node where ranks can meet."""
        return meeting_point()

    def start(self, module: Sequence[str], rank: tuple[int, int], address: str, interface: str | None) -> None:
        """Start the command; if it is one of several ranks, with the variables of this rank of so many."""
        if rank[1] > 1:
            choose_network_interface(interface)
        # The module must be found as in this process, whose paths Ray has set.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        if rank[1] > 1:
            environment |= RankVariables(*rank, address, local_rank=0).as_environment()  # Ray hides others' GPUs
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
        assert self._child is not None
        is_over = not self._reader.is_alive()
        lines = [self._lines.get() for _ in range(self._lines.qsize())]
        return lines, self._child.wait() if is_over else None

    def stop(self) -> None:
        """Let it write a checkpoint and end."""
        if self._child is None:
            return
        self._child.terminate()
        self._child.wait()  # whoever asked ends this process after a time, and the command with it

    def _read(self) -> None:
        assert self._child is not None and self._child.stdout is not None
        for line in self._child.stdout:
            self._lines.put(line.rstrip("\n"))
