"""What does the tracker write during a run? Metrics and notes to every sink, rollouts to files and a few to sinks."""

import time
from collections.abc import Mapping, Sequence
from types import TracebackType

from envs.json_lines import read_lines
from rl.config.experiment import ExperimentConfig
from rl.data_types import Group
from rl.runs.files import remove, replacing, storing
from rl.runs.folder import Kind, RunFolder
from rl.runs.sampled_rollouts import sampled_rows
from rl.runs.saved_rollouts import write_rollouts
from rl.runs.sinks.opened import OpenSinks


class Tracker:
    """Writes one run's metrics and rollouts; a context manager.

    A sink that fails is logged with its name and gets no further lines. Raises `StorageError` if the record of the run
    or its rollouts cannot be written.
    """

    def __init__(self, run: RunFolder, config: ExperimentConfig) -> None:
        self._run = run
        self._train = config.train
        with storing(run.rollouts):
            run.rollouts.mkdir(parents=True, exist_ok=True)
        lines = list(read_lines(run.metrics_file))
        self._evaluations = {(line["label"], line["step"]) for line in lines if line.get("kind") == "evaluation"}
        with storing(run.metrics_file):
            self._sinks = OpenSinks(config.tracking, run.path, lines)

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with storing(self._run.metrics_file):
            self._sinks.close()

    def track(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of a training step."""
        self._write({"kind": "train", "step": step, "time": time.time(), **metrics})

    def note(self, step: int, text: str) -> None:
        """Write a warning of a canary, or a note of an actor, about a training step."""
        self._write({"kind": "note", "step": step, "time": time.time(), "text": text})

    def track_evaluation(self, step: int, label: str, metrics: Mapping[str, float]) -> None:
        """Write the metrics of an evaluation after `step` updates; label `before`, `step` or `after`.

        Save its rollouts first: an evaluation whose metrics are written is not repeated.
        """
        self._write({"kind": "evaluation", "label": label, "step": step, "time": time.time(), **metrics})
        self._evaluations.add((label, step))

    def has_evaluation(self, label: str, step: int) -> bool:
        """Whether this evaluation is written, in this start of the run or an earlier one."""
        return (label, step) in self._evaluations

    def save_rollouts(self, step: int, kind: Kind, groups: Sequence[Group]) -> None:
        """Write the groups' rollouts; for training steps only every `train.save_rollouts_every`-th step, and the newest
        `train.keep_rollouts` files are kept.

        Sinks that take rollouts get a few of them. The file replaces that of an earlier start of the run.
        """
        if kind == "train" and not self._train.saves_rollouts(step):
            return
        path = self._run.rollouts_file(step, kind)
        with storing(path), replacing(path) as file:
            write_rollouts(file, step, kind, groups)
        if kind == "train" and self._train.keep_rollouts is not None:
            for old in list(self._run.rollouts_files("train").values())[: -self._train.keep_rollouts]:
                remove(old)
        self._sinks.write_rollouts(step, kind, lambda: sampled_rows(step, groups))

    def _write(self, line: Mapping[str, object]) -> None:
        with storing(self._run.metrics_file):
            self._sinks.write(line)
