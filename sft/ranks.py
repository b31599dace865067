"""How does the supervised stage run as several processes, the ranks of the learner?

`python -m sft train` starts them and waits for them (`run_ranks`); torchrun, and a joined cluster
(`rl.cluster.command`), start them too. A process that was started as a rank joins the others (`joined_ranks`).
"""

import contextlib
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from envs.errors import exit_code
from rl.cluster.rank_variables import GRACE_S, RankVariables, exit_code_of_all, rank_variables
from rl.config.errors import ConfigError
from rl.config.experiment import ExperimentConfig
from rl.stop import POLL_S, StopRequested, end_with_parent, handled_signals, raise_if_requested

if TYPE_CHECKING:
    from rl.ranks import Ranks


class RankDied(RuntimeError):
    """A rank was ended by a signal that it could not handle."""


@contextlib.contextmanager
def joined_ranks(config: ExperimentConfig) -> Iterator["Ranks"]:
    """All ranks, as this process sees them; inside the block, only one rank tells an error.

    Raises `ConfigError` if this process was started as one of another number of ranks.
    """
    import torch

    from rl.ranks import ALONE, join_ranks, leave_ranks

    ranks, told, learner = ALONE, rank_variables(), config.learner
    if told is not None and told.num != learner.num_ranks:
        raise ConfigError(
            f"the stage was started as {told.num} processes (WORLD_SIZE), but learner.num_ranks is"
            f" {learner.num_ranks}; make them equal"
        )
    if told is not None and told.num > 1:
        device = torch.device("cuda", told.local_rank) if learner.gpus > 0 else torch.device("cpu")
        if device.type == "cuda":
            torch.cuda.set_device(device)
        timeout_s = config.train.ranks_timeout_s  # also of the others, while the first one makes tokens of the rows
        ranks = join_ranks(told.rank, told.num, told.address, device, timeout_s, learner.expert_parallel)
    try:
        yield ranks
    except BaseException as error:
        if not ranks.tells(error):
            raise SystemExit(exit_code(error)) from None
        raise
    leave_ranks()


def run_ranks(module: Sequence[str], num: int) -> int:
    """Run `python -m MODULE ...` as `num` processes on this machine, which print here; their exit code.

    A signal is passed on to them. If one fails, the others are killed after a grace. Raises `RankDied`.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    started = []
    with handled_signals():
        try:
            for rank in range(num):
                environment = {**os.environ, **RankVariables(rank, num, address, rank).as_environment()}
                line = [sys.executable, "-m", *module]
                started.append(subprocess.Popen(line, env=environment, preexec_fn=end_with_parent))
            return _exit_code(started)
        finally:
            for process in started:
                process.kill()
                process.wait()


def _exit_code(processes: Sequence["subprocess.Popen[bytes]"]) -> int:
    stop: StopRequested | None = None
    failed: list[int | None] = []
    deadline = math.inf
    while True:
        codes = [process.poll() for process in processes]
        if any(codes) and not failed:
            failed, deadline = codes, time.monotonic() + GRACE_S
        if None not in codes or time.monotonic() > deadline:
            break
        try:
            raise_if_requested()
        except StopRequested as request:
            stop = request
            for process in processes:
                process.send_signal(stop.exit_code - 128)
        time.sleep(POLL_S)
    if stop is not None:
        return stop.exit_code if any(codes) else 0
    for rank, code in enumerate(failed):
        if code is not None and code < 0:
            raise RankDied(f"rank {rank} of the supervised stage was ended by {signal.Signals(-code).name}")
    return exit_code_of_all(code or 0 for code in codes)
