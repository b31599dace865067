"""What did the processes of a run say? Driver, learner, workers and the supervised stage append it to RUN/run.log.

    2026-11-25 19:48:39.123 worker 4711 WARNING rl.engine.thread: 1 rollouts neither sent a request nor closed

Further lines of a record, such as a traceback, are indented. Our packages are heard from level INFO on, others from
WARNING on, Python's warnings included. A record is one write in append mode, so processes do not tear each other's
lines. A log that cannot be written never stops a run.
"""

import contextlib
import fcntl
import logging
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from envs.errors import MAX_NAME_CHARACTERS, OURS, cut

MAX_BYTES = 16 * 2**20
"""A larger run.log becomes run.log.1, which replaces an older one. So both together stay below twice this size."""
MAX_CHARACTERS = 20_000
"""Maximum length of a message, and of a traceback; further characters are counted."""
APART = ("transformers", "datasets", "ray")
"""Libraries whose loggers do not propagate to the root logger."""
CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}
"""Control characters are escaped: a policy may write what moves the cursor of a reader's terminal."""


class RunLog(logging.Handler):
    """Appends this process's log records to the run's log."""

    def __init__(self, folder: Path, process: str) -> None:
        """`process` is what the process is in the run, such as `learner`."""
        super().__init__(logging.INFO)
        self.path = folder.absolute() / "run.log"
        self._process = process
        self.has_failed = False
        """Whether a record could not be written."""
        self._changed: list[logging.Logger] = []

    def install(self) -> None:
        """Hear every logger of this process. What is shown without this handler is still shown."""
        root = logging.getLogger()
        self._shown = logging.lastResort if not root.handlers else None  # used only while the root has no handler
        if self._shown is not None:
            root.addHandler(self._shown)
        for name in (None, *APART):
            logging.getLogger(name).addHandler(self)
        self._changed = [ours for ours in map(logging.getLogger, sorted(OURS)) if ours.level == logging.NOTSET]
        for ours in self._changed:
            ours.setLevel(logging.INFO)
        logging.captureWarnings(True)

    def remove(self) -> None:
        """Undo `install`."""
        logging.captureWarnings(False)
        for ours in self._changed:
            ours.setLevel(logging.NOTSET)
        for name in (None, *APART):
            logging.getLogger(name).removeHandler(self)
        if self._shown is not None:
            logging.getLogger().removeHandler(self._shown)

    def emit(self, record: logging.LogRecord) -> None:
        is_ours = record.name.partition(".")[0] in OURS
        if record.levelno < logging.WARNING and not is_ours:
            return
        if getattr(record, "run_log", None) is self:  # a library that does propagate after all
            return
        record.run_log = self
        try:
            line = self._line(record)
        except Exception:  # arguments that do not fit the message
            self.handleError(record)
            return
        self._append(line.encode())

    def write(self, level: int, text: str, error: BaseException | None = None) -> None:
        """Write a record that no other handler is to show."""
        exc_info = (type(error), error, error.__traceback__) if error else None
        self.handle(logging.LogRecord(__name__, level, __file__, 0, text, (), exc_info))

    def _line(self, record: logging.LogRecord) -> str:
        text = cut(record.getMessage(), MAX_CHARACTERS)
        if record.exc_info:
            text += "\n" + cut(logging.Formatter().formatException(record.exc_info), MAX_CHARACTERS)
        when = f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(record.created))}.{int(record.msecs):03d}"
        name = cut(record.name, MAX_NAME_CHARACTERS)
        line = f"{when} {self._process} {record.process} {record.levelname} {name}: {text.strip()}"
        return line.translate(CONTROL).replace("\n", "\n  ") + "\n"

    def _append(self, data: bytes) -> None:
        """Opened anew for each record, because another process may have renamed the file."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            file = os.open(self.path, flags, 0o666)
            try:
                if os.fstat(file).st_size + len(data) > MAX_BYTES:
                    self._rotate(file)
                os.write(file, data)
            finally:
                os.close(file)
        except OSError as error:
            if not self.has_failed:
                print(f"{self.path} cannot be written: {error.strerror}", file=sys.stderr)
            self.has_failed = True

    def _rotate(self, file: int) -> None:
        """Rename the file unless another process does so or has done so."""
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file), os.stat(self.path)):
                self.path.replace(self.path.with_name(f"{self.path.name}.1"))


@contextlib.contextmanager
def run_log(folder: Path, process: str, header: str) -> Iterator[None]:
    """Log this process to the folder's run.log inside the block, beginning with the header.

    An error that leaves the block is logged with its traceback, and gets a note that names the file.
    """
    log = RunLog(folder, process)
    log.install()
    try:
        log.write(logging.INFO, header)
        yield
    except Exception as error:
        log.write(logging.ERROR, "failed", error)
        if not log.has_failed:
            error.add_note(f"messages of all processes: {log.path}")
        raise
    except BaseException as stop:
        log.write(logging.INFO, f"stopped by {stop or type(stop).__name__}")
        raise
    finally:
        log.remove()


def join_run_log(folder: Path, process: str) -> None:
    """Log this process to the folder's run.log until it ends."""
    RunLog(folder, process).install()
