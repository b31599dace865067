"""The record of a run, `metrics.jsonl`: one JSON line per step, evaluation and note."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, TextIO

from pydantic import PrivateAttr

from rl.runs.sinks.sink import Line, Sink


class Jsonl(Sink):
    """RUN/metrics.jsonl, the record of the run, which --resume and the report read; always written."""

    sink: str = "jsonl"
    is_record: ClassVar[bool] = True
    _file: TextIO | None = PrivateAttr(None)

    def open(self, run_dir: Path, lines: Sequence[Line]) -> None:
        self._file = (run_dir / "metrics.jsonl").open("a", encoding="utf-8")

    def write(self, line: Line) -> None:
        from rl.runs.files import append_line, sync

        assert self._file is not None
        append_line(self._file, line)
        # Sync now: a checkpoint is synced too, and the lines of its steps must reach the disk before it does.
        sync(self._file)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
