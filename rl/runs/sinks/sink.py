"""What must a sink (tracker) implement, and what may it rely on?

`rl.runs.tracker` calls every method from one thread. It works on a copy of the section, so a sink may keep open files
in private attributes (pydantic's `PrivateAttr`). If a sink raises, the exception is logged with the sink's name and the
sink gets no further lines. Only a failure of the run's record ends the run.

A tracker that cannot take back what it was sent keeps its lines over a resume, and gets only those that it lacks
(`lacks`). The steps that a resumed run repeats therefore keep the values of the first time there.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from envs.json_lines import JsonObject
from rl.config.section import Section

Line = JsonObject
"""A line of `metrics.jsonl`: `kind` (train, evaluation or note), `step`, `time` (seconds since 1970), the `label` of an
evaluation (before, step or after), and the metrics by name, or the `text` of a note. Lines of the supervised stage have
the kind `supervised` and steps of their own."""
SUPERVISED = "supervised"
Row = Mapping[str, str | float | None]
"""A rollout as a row of a table, by the columns of `rl.runs.sampled_rollouts`."""


class Sink(Section):
    """A destination for the metrics of a run."""

    sink: str
    """Name of the sink in `SINKS`; each sink sets it as the default."""
    is_record: ClassVar[bool] = False
    """Whether --resume and the report read it, so that a run cannot go on without it."""
    package: ClassVar[str] = ""
    """The optional package that it imports; empty if the main list of requirements is enough."""
    takes_rollouts: ClassVar[bool] = False
    """Whether `write_rollouts` is called."""

    def open(self, run_dir: Path, lines: Sequence[Line]) -> None:
        """Open for writing. `lines` are the lines that earlier starts of the run wrote and kept, oldest first."""
        raise NotImplementedError

    def write(self, line: Line) -> None:
        """Write one line: a step, an evaluation or a note."""
        raise NotImplementedError

    def write_rollouts(self, step: int, kind: str, rows: Sequence[Row]) -> None:
        """Write a few of the rollouts that a training step or an evaluation (`kind`) saves, before its line."""

    def close(self) -> None:
        """Flush and close. Also called after `open` or `write` failed."""


NOT_METRICS = ("kind", "step", "time", "label")


def scalars(line: Line) -> dict[str, float]:
    """The numeric values of a line by name; names of an evaluation begin with `evaluation/`, and so on."""
    prefix = "" if series(line) == "train" else f"{series(line)}/"
    return {
        prefix + name: value
        for name, value in line.items()
        if name not in NOT_METRICS and isinstance(value, int | float)
    }


def series(line: Line) -> str:
    """What the line belongs to: `evaluation`, `supervised`, or `train`, where notes belong too."""
    return line["kind"] if line["kind"] in ("evaluation", SUPERVISED) else "train"


def lacks(newest: Mapping[str, int], line: Line) -> bool:
    """Whether a tracker lacks the line, which at its opening held the series up to these steps."""
    return line["step"] > newest.get(series(line), -1)
