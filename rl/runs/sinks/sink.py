"""What does a sink do, and what may it rely on?

`rl.runs.tracker` calls all of it, from one thread. It works on a copy of the section, so that a sink may keep what it
opened in private attributes (pydantic's `PrivateAttr`). An exception from a sink is logged with the sink's name, and
the sink is left out from then on; only the record of the run ends the run.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from envs.json_lines import JsonObject
from rl.config.section import Section

Line = JsonObject
"""A line of `metrics.jsonl`: `kind` (train, evaluation or note), `step`, `time` (seconds since 1970), the `label` of an
evaluation (before, step or after), and the metrics by name, or the `text` of a note."""


class Sink(Section):
    """A place that the numbers of a run are written to."""

    sink: str
    """Its name in `SINKS`, which each sink has as its default."""
    is_record: ClassVar[bool] = False
    """Whether resuming and the report read it, so that a run cannot go on without it."""

    def open(self, run_dir: Path, lines: Sequence[Line]) -> None:
        """Begin to write. `lines` are what earlier starts of the run wrote and kept, oldest first."""
        raise NotImplementedError

    def write(self, line: Line) -> None:
        """Write the numbers of one step or evaluation."""
        raise NotImplementedError

    def close(self) -> None:
        """Bring everything to its place. Also called when opening or writing failed."""


NOT_METRICS = ("kind", "step", "time", "label")


def scalars(line: Line) -> dict[str, float]:
    """The numbers of a line by name; those of an evaluation begin with `evaluation/`."""
    prefix = "evaluation/" if line["kind"] == "evaluation" else ""
    return {
        prefix + name: value
        for name, value in line.items()
        if name not in NOT_METRICS and isinstance(value, int | float)
    }
