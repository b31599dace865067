"""What does a command do when nobody reads what it prints any more? It goes on, and its exit code stays its own.

A pipe's reader may end before the command does (`... | tee log` and Ctrl-C, which both get), and so may a terminal.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import IO


@contextlib.contextmanager
def unread(file: IO[str]) -> Iterator[None]:
    """Printing to `file` inside the block raises nothing. Once it has failed, what is printed there goes nowhere."""
    try:
        yield
    except (OSError, SystemExit):  # rich raises SystemExit for a broken pipe
        with contextlib.suppress(OSError, ValueError):  # it is no file of the system
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, file.fileno())  # also for what is still buffered, which Python flushes at its end
            os.close(nowhere)
