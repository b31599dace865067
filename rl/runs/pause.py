"""How does a run pause, and who lets it go on? It waits between two steps while its file `paused` is there.

Engines and learner stay. Whoever removes the file lets the run go on, and SIGUSR1 to the driver removes it. The file
outlives the driver: a run that is killed while it pauses pauses again when it is resumed. `touch RUN/paused` pauses any
run after its current step.
"""

import contextlib
import os
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rl.runs.canaries import CanaryStop
from rl.runs.files import storing, write_atomically
from rl.stop import POLL_S, raise_if_requested, take_go_on


def ask_to_pause(paused: Path, reasons: Sequence[str]) -> None:
    """Make the run pause after its current step, if there are reasons."""
    if reasons:
        write_atomically(paused, "\n".join(reasons) + "\n")


def wait_to_go_on(paused: Path, timeout_s: float, say: Callable[[str], None]) -> None:
    """Say why the run pauses, and return when the file is gone.

    Raises `StopRequested`, and `CanaryStop` at canaries.pause_timeout_s.
    """
    started = time.monotonic()
    take_go_on()  # a signal from before the pause, of which nobody knew, does not end it
    with contextlib.suppress(FileNotFoundError):
        say(_words(paused))
    while paused.exists():
        raise_if_requested()
        if take_go_on():
            with storing(paused):
                paused.unlink(missing_ok=True)
        elif time.monotonic() - started > timeout_s:
            raise CanaryStop(
                f"nobody let the run go on within {timeout_s:g} s (canaries.pause_timeout_s); remove {paused}, then go"
                " on with --resume"
            )
        else:
            time.sleep(POLL_S)
    say("pause over")


def _words(paused: Path) -> str:
    reasons = paused.read_text(errors="replace").strip() or "somebody made the file"
    ways = f"remove {paused}, or kill -USR1 {os.getpid()} on {socket.gethostname()}"
    return f"paused with engines and learner as they are: {reasons}. To go on: {ways}"
