"""What decides the course of an asynchronous run, beside its configuration, and how is it recorded and repeated?

In the loop it is which groups are started when, and which worker plays them; in an engine, what `rl.engine.record`
says. A `Course` leaves it to the clock; `rl.runs.recording` records and repeats it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class EngineFiles:
    """The files of one engine."""

    record: Path
    script: Path | None
    """The record that the engine is to follow."""
    difference: Path
    """Where the engine writes what it could not follow."""


class Course:
    """Neither recorded nor repeated."""

    is_replay = False

    def starts(self) -> Sequence[int | None] | None:
        """The worker of each group to be started now, None for a group that was kept; None to decide it anew."""
        return None

    def started(self, ordinals: Sequence[int], workers: Sequence[int | None]) -> None:
        """Groups were started; the workers are as in `starts`."""

    def engine_files(self, worker: int) -> EngineFiles | None:
        """What the worker's engine is to write and to follow; None for nothing."""
        return None

    def replaced(self, worker: int, error: Exception) -> None:
        """A worker is to be replaced. Raises if that cannot be."""
