"""The record of a run: one line of JSON a step and an evaluation, in `metrics.jsonl`."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, TextIO

from pydantic import PrivateAttr

from rl.runs.sinks.sink import Line, Sink


class Jsonl(Sink):
    """RUN/metrics.jsonl, which resuming and the report read; always written."""

    sink: str = "jsonl"
    is_record: ClassVar[bool] = True
    _file: TextIO | None = PrivateAttr(None)

    def open(self, run_dir: Path, lines: Sequence[Line]) -> None:
        self._file = (run_dir / "metrics.jsonl").open("a", encoding="utf-8")

    def write(self, line: Line) -> None:
        from rl.runs.files import append_line, sync

        assert self._file is not None
        append_line(self._file, line)
        # A checkpoint is brought to the disk, so the steps in it must be there before it is.
        sync(self._file)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
