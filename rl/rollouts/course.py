"""What decides the course of an asynchronous run, beside its configuration, and how is it recorded and repeated?

In the loop it is which groups are started when, which worker plays them, and which it loses with a worker that dies; in
an engine, what `rl.engine.record` says. A `Course` leaves it to the clock; `rl.runs.recording` records and repeats it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rl.cluster.actors import ActorDied


@dataclass(frozen=True, slots=True)
class EngineFiles:
    """The files of one engine."""

    record: Path
    script: Path | None
    """The record that the engine is to follow."""
    difference: Path
    """Where the engine writes what it could not follow."""
    ended_groups: frozenset[str] = frozenset()
    """Groups that ended on the recorded engine, if it played them."""


class RecordedDeath(ActorDied):
    """The run that is repeated lost a worker here."""

    def __init__(self, told: str, lost: Sequence[str]) -> None:
        super().__init__(told)
        self.lost = tuple(lost)
        """The names of the parts that the worker had not ended."""


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

    def check_alive(self, worker: int, waiting_for: str = "") -> None:
        """Called before each wait for a worker, for a part of this name or for weights to be loaded. Raises
        `RecordedDeath` if the run that is repeated lost the worker in this wait.
        """

    def replaced(self, worker: int, error: Exception, waiting_for: str, lost: Sequence[str]) -> None:
        """A worker, which was waited for as in `check_alive`, is to be replaced; these parts it had not ended. Raises
        if that cannot be. `engine_files` are those of the new one from now on.
        """
