"""What happens if the head of the Ray cluster is lost? The run is requested to stop, and writes a checkpoint.

Ray kills every process that cannot reach the head (GCS) for 60 seconds, in C++, so none of our code runs after that.
Until then calls between actors that know each other still work: long enough to write a checkpoint.
"""

import contextlib
import threading
from collections.abc import Iterator

from rl.cluster.address import answers
from rl.stop import request_stop

INTERVAL_S = 3.0
NUM_MISSED = 3
"""Consecutive attempts without an answer after which the head counts as lost."""


@contextlib.contextmanager
def watched(head: str) -> Iterator[None]:
    """Inside the block, request a stop of the run if nothing listens at `head` (`host:port` or `ray://host:port`)."""
    is_over = threading.Event()
    threading.Thread(target=_watch, args=(head, is_over), name="watches the Ray head", daemon=True).start()
    try:
        yield
    finally:
        is_over.set()


def _watch(head: str, is_over: threading.Event) -> None:
    num_missed = 0
    while num_missed < NUM_MISSED:
        if is_over.wait(INTERVAL_S):
            return
        num_missed = 0 if answers(head) else num_missed + 1
    request_stop(f"the loss of the Ray cluster: its head at {head} no longer answers")
