"""An environment that computes a given time an episode, in Python, for `benchmarks.computing`."""

import time

import numpy as np

from envs.scored import Row, scored


def draw(rng: np.random.Generator, cpu_s: float = 0.3) -> Row:
    return {"prompt": f"Say {rng.integers(10**6)}.", "gold": "", "cpu_s": cpu_s}


@scored(draw=draw)
def computes(reply, row: Row) -> float:
    """Takes `cpu_s` seconds of CPU time to score a reply; the score is whether its length is even."""
    started = time.thread_time()
    while time.thread_time() - started < row["cpu_s"]:
        sum(range(1000))
    return float(len(reply.text) % 2 == 0)
