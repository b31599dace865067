"""How is progress shown on a terminal that other code writes to, and where there is none (a log, `TERM=dumb`)?

`drawn` keeps a bar or panel whole: prints, warnings and logs of libraries appear above it. `ProgressLine` is a bar with
the time left; where a line cannot be redrawn it prints a line after each tenth. The run's log gets these lines too.
"""

import contextlib
import logging
import sys
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from envs.unread import unread

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def drawn(shown: Live | Progress) -> Iterator[bool]:
    """Draw it inside the block if its console can redraw lines; gives whether it can."""
    if not shown.console.is_interactive:  # a file, or a terminal that cannot move its cursor
        yield False
        return
    streams = (sys.stdout, sys.stderr)
    shown.start()  # puts streams of its own in their place
    redirected = [handler for handler in _stream_handlers() if handler.stream in streams]
    previous = [handler.setStream(sys.stderr) for handler in redirected]
    try:
        yield True
    finally:
        with unread(shown.console.file):
            shown.stop()
        for handler, stream in zip(redirected, previous, strict=True):
            handler.setStream(stream)


def print_line(console: Console, text: str) -> None:
    """Print a line as it is. A run does not end because nobody reads it."""
    with unread(console.file):
        console.print(text, markup=False, highlight=False, soft_wrap=True)


def _stream_handlers() -> list[logging.StreamHandler[Any]]:
    """The handlers of all loggers that write to streams. They keep the stream from when they were created."""
    loggers = [logging.getLogger(), *logging.root.manager.loggerDict.values()]
    handlers = [handler for one in loggers if isinstance(one, logging.Logger) for handler in one.handlers]
    own = [one for one in handlers if isinstance(one, logging.StreamHandler) and one is not logging.lastResort]
    return list(dict.fromkeys(own))


class ProgressLine:
    """Progress through `total` things, of which `done` were done before; a context manager."""

    def __init__(
        self, what: str, total: int, done: int = 0, *, console: Console | None = None, transient: bool = False
    ):
        self._what, self._total, self._first, self._done = what, total, done, done
        self._start = time.monotonic()
        self._progress = Progress(
            TextColumn(what),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[last]}", markup=False),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console or Console(),
            refresh_per_second=2,  # drawing takes time from training
            transient=transient,
        )
        self._task = self._progress.add_task(what, total=total, completed=done, last="")
        self._drawn = drawn(self._progress)
        self._is_drawn = False

    def __enter__(self) -> "ProgressLine":
        self._is_drawn = self._drawn.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._drawn.__exit__(kind, error, traceback)

    def update(self, done: int, last: str = "") -> None:
        """So many are done; `last` says more about the last one."""
        tenth_before, self._done = self._done * 10 // self._total, done
        self._progress.update(self._task, completed=done, last=last)
        if done * 10 // self._total > tenth_before:
            left_s = (self._total - done) * (time.monotonic() - self._start) / (done - self._first)
            self._say("  ".join(filter(None, [last, f"{left_s:.0f} s left"])))

    def remark(self, last: str, text: str) -> None:
        """Show `text` in a line of its own, or as the part `last` of the bar."""
        self._progress.update(self._task, last=last)
        self._say(text)

    def _say(self, text: str) -> None:
        line = f"{self._what} {self._done}/{self._total}  {text}"
        logger.info("%s", line)
        if not self._is_drawn:
            print_line(self._progress.console, line)
