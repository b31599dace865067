"""What if the head of the Ray cluster is gone?

Ray ends every process that cannot reach its head (GCS) for 60 seconds, in C++, so that nothing of ours runs any more.
Calls between actors that know each other still work until then: enough to write a checkpoint.
"""

import contextlib
import threading
from collections.abc import Iterator

from rl.cluster.address import answers
from rl.stop import request_stop

INTERVAL_S = 3.0
NUM_MISSED = 3
"""Attempts in a row without an answer after which the head is taken for gone."""


@contextlib.contextmanager
def watched(head: str) -> Iterator[None]:
    """While the block runs, ask the run to stop when nothing listens at `head` (`host:port` or `ray://host:port`)."""
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
