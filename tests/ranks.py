"""Ranks of a learner in processes of their own, for tests: forked, so that nothing is imported again."""

import multiprocessing
import queue
import socket
from collections.abc import Callable
from typing import Any

import torch

from rl.ranks import Ranks, join_ranks, leave_ranks

TIMEOUT_S = 60.0


def on_ranks(num: int, work: Callable[[Ranks], Any], expert_parallel: int = 1) -> list[Any]:
    """What `work` returns on each of `num` ranks, in their order; an error of a rank is returned as it is told."""
    context = multiprocessing.get_context("fork")
    results: Any = context.Queue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    processes = [
        context.Process(target=_run, args=(rank, num, address, work, results, expert_parallel)) for rank in range(num)
    ]
    for process in processes:
        process.start()
    try:
        told = dict(results.get(timeout=TIMEOUT_S) for _ in range(num))
    except queue.Empty:
        raise AssertionError(f"only some of {num} ranks ended; exit codes {[p.exitcode for p in processes]}") from None
    finally:
        for process in processes:
            process.join(5)
            process.kill()
    return [told[rank] for rank in range(num)]


def _run(rank: int, num: int, address: str, work: Callable[[Ranks], Any], results: Any, expert_parallel: int) -> None:
    torch.set_num_threads(1)
    try:
        ranks = join_ranks(rank, num, address, torch.device("cpu"), TIMEOUT_S / 2, expert_parallel)
        results.put((rank, work(ranks)))
    except BaseException as error:
        results.put((rank, f"{type(error).__name__}: {error}"))
    results.close()
    results.join_thread()
    leave_ranks()
