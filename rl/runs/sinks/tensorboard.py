"""The metrics of a run as TensorBoard event files: `tensorboard --logdir RUN/tensorboard`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import PrivateAttr

from rl.runs.sinks.sink import Line, Sink, scalars

if TYPE_CHECKING:
    from tensorboard.summary import Writer


class TensorBoard(Sink):
    """TensorBoard event files in RUN/tensorboard."""

    sink: str = "tensorboard"
    _writer: "Writer | None" = PrivateAttr(None)

    def open(self, run_dir: Path, lines: Sequence[Line]) -> None:
        """Rewrite the event files from `lines`, so that they match the record after a resume."""
        from tensorboard.summary import Writer

        folder = run_dir / "tensorboard"
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("events.*"):
            if old.is_file():
                old.unlink()
        self._writer = Writer(str(folder))
        for line in lines:
            self._add(line)
        self._writer.flush()

    def write(self, line: Line) -> None:
        self._add(line)
        assert self._writer is not None
        self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _add(self, line: Line) -> None:
        assert self._writer is not None
        for name, value in scalars(line).items():
            self._writer.add_scalar(name, value, line["step"], wall_time=line["time"])
