"""How are the sinks of a run written to? One that fails is named in a warning and gets no further lines."""

import contextlib
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from envs.json_lines import read_lines
from rl.runs.sinks.sink import SUPERVISED, Line, Row, Sink

logger = logging.getLogger(__name__)


class OpenSinks:
    """Sinks from their opening to `close`. If the record of the run fails, its error is raised."""

    def __init__(self, sinks: Iterable[Sink], run_dir: Path, lines: Sequence[Line]) -> None:
        """`lines` were written before; those of the supervised stage need not be among them."""
        # Copies: the configuration is sent to other processes, and open files of a sink cannot be.
        self._sinks = [sink.model_copy() for sink in sinks]
        before = [*supervised_lines(run_dir), *lines]
        self._each("opened", lambda sink: sink.open(run_dir, before))

    def write(self, line: Line) -> None:
        self._each("written", lambda sink: sink.write(line))

    def write_rollouts(self, step: int, kind: str, make_rows: Callable[[], Sequence[Row]]) -> None:
        """To the sinks that take rollouts; rows are made only if there is one."""

        def show(sink: Sink) -> None:
            if sink.takes_rollouts and (rows := make_rows()):
                sink.write_rollouts(step, kind, rows)

        self._each("written", show)

    def close(self) -> None:
        self._each("closed", lambda sink: sink.close())

    def _each(self, done: str, what: Callable[[Sink], None]) -> None:
        """Do it with every sink that has not failed yet."""
        for sink in list(self._sinks):
            try:
                what(sink)
            except Exception as error:
                if sink.is_record:
                    raise
                self._sinks.remove(sink)
                with contextlib.suppress(Exception):
                    sink.close()
                logger.warning(
                    "tracking: the sink %s cannot be %s and gets no further lines: %s: %s",
                    *(sink.sink, done, type(error).__name__, error),
                )


def supervised_lines(run_dir: Path) -> list[Line]:
    """The metrics of the run's supervised stage, as far as it has come."""
    files = [run_dir / name / "metrics.jsonl" for name in ("sft.partial", "sft")]
    file = next((file for file in files if file.is_file()), None)
    return [{"kind": SUPERVISED, **line} for line in read_lines(file) if "time" in line] if file else []
