"""How does the loop get its groups from the rollouts that another run saved, without engines?

Step k trains what the other run saved as its step k, or, after n updates that were refused
(canaries.not_finite), as its step k + n. Tokens keep the versions that sampled them.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from rl.config.errors import ConfigError
from rl.config.experiment import ExperimentConfig
from rl.config.read import load_config
from rl.data_types import Group, Task
from rl.runs.folder import RunFolder
from rl.runs.saved_rollouts import load_rollouts
from rl.tasks.ledger import Ledger


class SavedGroupsError(ConfigError):
    """The saved rollouts of a run cannot be trained with this configuration."""


class SavedGroupsEnd(RuntimeError):
    """All saved rollouts were used, and steps are left."""


class SavedGroups:
    """Hands over saved groups as `rl.rollouts.collector.Collector` hands over played ones."""

    num_in_flight = 0

    def __init__(self, run: RunFolder, ledger: Ledger, step: int) -> None:
        """`step` is the last step that was trained."""
        self._run, self._files, self._ledger, self._step = run, run.rollouts_files("train"), ledger, step

    def collect(self) -> list[Group]:
        """The groups of the next step, in the order in which they were trained.

        What the ledger has closed is left out: a run that goes on after refused updates finds it in the next files.
        Raises `SavedGroupsEnd`.
        """
        while True:
            self._step += 1
            if self._step not in self._files:
                raise SavedGroupsEnd(
                    f"--rollouts-from: {self._run.rollouts} has no rollouts of step {self._step}; each update that is"
                    " refused (canaries.not_finite.mask) uses up those of a step. The checkpoint holds the steps that"
                    " were made: lower train.num_steps to them, or --resume with a run that saved more steps"
                )
            if groups := self._read(self._files[self._step]):
                return groups

    def _read(self, path: Path) -> list[Group]:
        groups: list[Group] = []
        for group_id, rollouts in groupby(load_rollouts(path), key=lambda one: one.group_id):
            members = tuple(rollouts)
            ordinal = members[0].task.ordinal
            if self._ledger.is_open(ordinal) and all(ordinal != group.task.ordinal for group in groups):
                self._start(ordinal)
                groups.append(Group(group_id, members[0].task, members))
        return groups

    def evaluate(self, tasks: Sequence[Task], *, at_once: bool = False) -> Iterator[list[Group]]:
        """Nothing: there is no engine that plays held-out tasks."""
        yield from ()

    def _start(self, ordinal: int) -> None:
        """Count the task, which is open, as played, and those before it, which the other run masked, as masked."""
        while (started := self._ledger.start()) != ordinal:
            self._ledger.play([started])
            self._ledger.finish(started, masked=True)
        self._ledger.play([ordinal])


def check_saved_groups(run: RunFolder, config: ExperimentConfig) -> None:
    """Raise `SavedGroupsError` unless the run saved all steps to be trained, and has what the experiment reads."""
    saved = run.rollouts_files("train")
    missing = [step for step in range(1, config.train.num_steps + 1) if step not in saved]
    if missing:
        raise SavedGroupsError(
            f"--rollouts-from: {run.rollouts} has no rollouts of step {missing[0]}, and train.num_steps is"
            f" {config.train.num_steps}; lower it, or play a run that saves each step (train.save_rollouts_every: 1)"
        )
    if not run.config_file.is_file():
        return
    played = load_config(run.config_file)
    if unknown := sorted(played.environments.keys() - config.environments.keys()):
        raise SavedGroupsError(
            f"--rollouts-from: {run.path} played {', '.join(unknown)}, which the experiment does not have; add it under"
            " environments, because each environment's rollouts have an algorithm"
        )
    if absent := sorted({*config.columns, *config.needs} - {*played.columns, *played.needs}):
        raise SavedGroupsError(
            f"--rollouts-from: the rollouts of {run.path} lack {', '.join(absent)}, which this experiment's algorithms"
            " or learner read; play a run that records it, with the same keys of loss and learner"
        )
