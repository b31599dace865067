"""What happens if the head of the Ray cluster, or the raylet beside the driver, is lost?

If the head (GCS) is lost, the run is requested to stop, and writes a checkpoint. Ray kills every process that cannot
reach the head for 60 seconds, in C++, so none of our code runs after that. Until then calls between actors that know
each other still work: long enough to write a checkpoint. If the raylet dies, Ray ends the driver in this way at once,
and silently; another process tells it.
"""

import contextlib
import subprocess
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


@contextlib.contextmanager
def last_words(text: str) -> Iterator[None]:
    """Let a shell print the text on stderr if this process ends inside the block and can run no more code.

    The shell waits for the end of a pipe that this process alone holds. A line in it says that the block was left.
    """
    command = ["/bin/sh", "-c", 'read -r line || printf "%s\\n" "$0" >&2', text]
    # In a session of its own, so that a signal to this process's group (Ctrl-C) leaves it alive.
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as shell:
        try:
            yield
        finally:
            shell.communicate(b"\n")


def _watch(head: str, is_over: threading.Event) -> None:
    num_missed = 0
    while num_missed < NUM_MISSED:
        if is_over.wait(INTERVAL_S):
            return
        num_missed = 0 if answers(head) else num_missed + 1
    request_stop(f"the loss of the Ray cluster: its head at {head} no longer answers")
