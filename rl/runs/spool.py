"""Which groups that were played outlive a crash, and how are they kept until a checkpoint has counted them?

    spool/ATTEMPT/00000042.jsonl    the group of task 42: the hash of the rest, then its rollouts, one a line

A worker writes a group as soon as it has ended. An attempt is one start of the training loop: of a run, with --resume,
or after the learner's death. It takes the folder of the attempt before over by renaming it, so a process of the lost
attempt that still plays has no folder to write to. It goes on with a group if

- the checkpoint's ledger has neither trained nor masked its task,
- the file is whole, and its task is still that of the task stream,
- the checkpoint's version, or one before it, sampled each token: later versions are lost, and the loop will give their
  numbers to other weights,
- no token will be older than `train.max_staleness` when the group is trained in its turn.

Others are dropped and played again. A group with a rollout that does not count is not kept: what failed gets another
chance. Synchronous runs keep none: the bits of a reply depend on the batch in which it is sampled, so a resumed step
equals the undisturbed one only if all of it is played together.

A group is removed when a checkpoint counts it, and already when it is trained if the newest checkpoint lacks one of its
versions: no start could use it. So there are never more than twice the groups that are in flight.
"""

import json
import logging
import re
import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from rl.config.train import TrainConfig
from rl.data_types import Group, Task
from rl.runs.files import remove, storing, write_atomically
from rl.runs.saved_rollouts import rollout_from, rollout_object, task_object
from rl.tasks.ledger import Ledger
from rl.tasks.stream import TaskStream

logger = logging.getLogger(__name__)
NAME = re.compile(r"([0-9]{8,})\.jsonl")


class SpoolError(ValueError):
    """A file cannot be used; the text says why, in words that are counted."""


@dataclass(frozen=True, slots=True)
class SpoolFile:
    """The place of one group; implements `rl.rollouts.worker.Keeper`."""

    path: Path
    task: Task

    def write(self, group: Group) -> None:
        """Keep the group if all its rollouts count. It is trained also if it cannot be kept, so that is a warning."""
        if not all(rollout.outcome.counts for rollout in group.rollouts):
            return
        try:
            lines = "".join(json.dumps(rollout_object(rollout), default=str) + "\n" for rollout in group.rollouts)
            write_atomically(self.path, f"{xxhash.xxh3_64_hexdigest(lines.encode())}\n{lines}")
        except Exception as error:  # a full disk, or a value of an environment that JSON does not have
            logger.warning("group %s would have to be played again after a crash: %s", group.group_id, error)

    def read(self) -> Group | None:
        """The group, if it was kept."""
        try:
            return self.load()
        except (SpoolError, FileNotFoundError):
            return None

    def load(self) -> Group:
        """Raises `SpoolError`, and `FileNotFoundError`."""
        try:
            told, _, lines = self.path.read_text(encoding="utf-8").partition("\n")
            if told != xxhash.xxh3_64_hexdigest(lines.encode()):
                raise SpoolError("damaged")
            saved = [json.loads(line) for line in lines.splitlines()]
            if any(one["task"] != json.loads(json.dumps(task_object(self.task), default=str)) for one in saved):
                raise SpoolError("of a task that has changed")
            rollouts = tuple(rollout_from(one, self.task) for one in saved)
            return Group(rollouts[0].group_id, self.task, rollouts)
        except (SpoolError, FileNotFoundError):
            raise
        except (OSError, ValueError, LookupError, TypeError) as error:  # also: of another version of this code
            raise SpoolError("damaged") from error


class Spool:
    """The groups that one attempt keeps."""

    def __init__(self, folder: Path, train: TrainConfig) -> None:
        self._attempts = folder.absolute()  # workers may have another working directory
        self.folder = self._attempts / secrets.token_hex(4)
        self._train = train

    def file(self, task: Task) -> SpoolFile | None:
        """Where the task's group is kept; None in a synchronous run. Raises `StorageError`."""
        if self._train.max_staleness == 0:
            return None
        with storing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        return SpoolFile(self.folder / f"{task.ordinal:08d}.jsonl", task)

    def take_over(self, step: int, ledger: Ledger, stream: TaskStream) -> str:
        """Go on with the groups of earlier attempts, of which the checkpoint has this step and ledger, and drop others.

        Returns how many, in words; nothing if there were none. Raises `StorageError`.
        """
        reasons: Counter[str] = Counter()
        num_kept = 0
        with storing(self._attempts):
            for folder in self._attempts.glob("*"):
                if self.folder.exists():
                    remove(folder)  # there is one attempt at a time, so this is a copy that somebody made
                else:
                    folder.rename(self.folder)
            for path in self.folder.glob("*"):
                try:
                    stream.start(self._check(path, step, ledger, stream))
                    num_kept += 1
                except SpoolError as reason:
                    reasons[str(reason)] += 1
                    path.unlink()
        dropped = "".join(f"; dropped {num} {reason}" for reason, num in sorted(reasons.items()))
        return f"finished groups that are not played again: {num_kept}{dropped}" if num_kept or dropped else ""

    def trained(self, groups: Sequence[Group], saved_step: int) -> None:
        """Remove those of the groups, which were trained, that the checkpoint of `saved_step` lacks a version of."""
        for group in groups:
            if max(_versions(group), default=0) > saved_step:
                remove(self.folder / f"{group.task.ordinal:08d}.jsonl")

    def saved(self, ledger: Ledger) -> None:
        """Remove the groups that the ledger, which a checkpoint holds now, has trained or masked."""
        for path in self.folder.glob("*"):
            if (name := NAME.fullmatch(path.name)) and not ledger.is_open(int(name[1])):
                remove(path)

    def clear(self) -> None:
        """Keep nothing, also of what is being played: a canary doubts what was sampled."""
        remove(self.folder)

    def _check(self, path: Path, step: int, ledger: Ledger, stream: TaskStream) -> int:
        """The ordinal of the group. Raises `SpoolError` with the reason if it cannot be taken over from this file."""
        if not (name := NAME.fullmatch(path.name)):
            raise SpoolError("unfinished")
        ordinal = int(name[1])
        if not ledger.is_open(ordinal):
            raise SpoolError("trained or masked before")
        versions = _versions(SpoolFile(path, stream.task(ordinal)).load())
        if max(versions, default=0) > step:
            raise SpoolError("sampled by lost versions")
        # Tasks are trained in order; a step takes at least so many.
        trained_version = step + (ordinal - ledger.first_open) // self._train.num_prompts
        if trained_version - min(versions, default=trained_version) > self._train.max_staleness:
            raise SpoolError("too old")
        return ordinal


def _versions(group: Group) -> set[int]:
    """The versions that sampled the group's tokens."""
    replies = [turn.reply for rollout in group.rollouts for turn in rollout.turns]
    return {version for reply in replies for version in np.unique(reply.columns["version"][reply.sampled]).tolist()}
