"""What is recorded of an asynchronous run so that `rl train --replay RUN` repeats it bit for bit, and how is it read?

    record/0001/config.yaml        the configuration of this attempt
    record/0001/loop.jsonl         in the loop's order: which groups were started on which worker, what was handed over
                                   and what each update computed, as hashes
    record/0001/engine_0.jsonl     what the engine of worker 0 did (`rl.engine.record`)
    record/0001/engine_0_1.jsonl   what the engine did that took its place when worker 0 died
    record/0001/kept/              groups of earlier attempts with which this one went on (`rl.runs.spool`)

An attempt is one start of the training loop: of a run, with --resume, or after the learner's death. A replay writes the
same lines, and the first line that is not the recorded one is the difference. Synchronous runs have no record: they
repeat themselves.

A worker that died is told with the wait in which that was noticed, and with the groups that were lost. A replay ends
its own worker in the same wait, once the other groups have ended, so the new one plays what it played in the run.
"""

import json
import logging
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash

from envs.json_lines import JsonObject, read_lines
from rl.config.errors import ConfigError
from rl.config.experiment import ExperimentConfig
from rl.config.read import dump_config
from rl.data_types import Group, Rollout, Update
from rl.engine.record import tokens_hash
from rl.record_file import RecordFile
from rl.rollouts.course import Course, EngineFiles, RecordedDeath
from rl.runs.differences import Recorded, ReplayDiffers, engine_difference, line_difference
from rl.runs.folder import RunFolder
from rl.weights.source import Publication

logger = logging.getLogger(__name__)
LOOP = "loop.jsonl"


class NoRecordError(ConfigError):
    """The run folder holds no record of an asynchronous run."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """The record of one attempt, as far as it can be repeated."""

    folder: Path
    lines: tuple[JsonObject, ...]
    first_step: int
    """The step of the checkpoint that it went on from."""
    last_step: int
    """The last step to repeat: the newest, or the one from which the next attempt went on."""
    end: str
    """Why nothing after the last step can be repeated; empty if the next attempt went on there, or the run ended."""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to repeat: it was stopped before it made a step that counts, or an evaluation."""
        return self.first_step == self.last_step and all(line["kind"] != "evaluation" for line in self.lines)

    @property
    def is_again(self) -> bool:
        """Whether it went on after the learner's death, beside engines that lived on."""
        return self.lines[0]["again"]

    @property
    def config_file(self) -> Path:
        return self.folder / "config.yaml"

    @property
    def kept(self) -> Path:
        return self.folder / "kept"

    def missing_files(self, num_workers: int) -> list[Path]:
        """Records of engines that a replay would follow, and that are not there."""
        if self.is_empty:
            return []
        last = max(index for index, line in enumerate(self.lines) if line["kind"] in {"groups", "evaluation"})
        deaths = Counter(line["worker"] for line in self.lines[:last] if line["kind"] == "replaced")
        names = [engine_file(worker, num) for worker in range(num_workers) for num in range(deaths[worker] + 1)]
        return [path for name in names if not (path := self.folder / name).is_file()]


def read_attempts(run: RunFolder) -> list[Attempt]:
    """The attempts of the run in their order. Raises `NoRecordError`."""
    attempts: list[Attempt] = []
    for folder in reversed(_attempt_folders(run.record)):
        lines = list(read_lines(folder / LOOP))
        if not lines:  # it was stopped while its parts started
            continue
        first, end = lines[0]["step"], ""
        last = max((line["step"] for line in lines if line["kind"] == "update"), default=first)
        if attempts and attempts[0].first_step <= last:
            last = attempts[0].first_step
        elif attempts:
            attempts, end = [], "nothing is recorded of its last steps"
        attempts.insert(0, Attempt(folder.absolute(), tuple(lines), first, last, end))
    if not attempts or attempts[0].first_step != 0 or attempts[-1].last_step == 0:
        raise NoRecordError(
            f"{run.path} holds no record of a run from its first step on; asynchronous runs (train.max_staleness above"
            " 0) write one, unless train.record is false. A synchronous run is repeated by training once more with its"
            " config.yaml"
        )
    return attempts


class Recording(Course):
    """Records one attempt; of a synchronous run, nothing. With a recorded attempt it repeats that."""

    def __init__(self, run: RunFolder | None = None, attempt: Attempt | None = None) -> None:
        """Begin a new folder in the run's record, for a run or for its repetition of a recorded attempt.

        Without a run nothing is recorded. A run goes on if its record cannot be written, with a warning.
        """
        number = len(_attempt_folders(run.record)) + 1 if run else 0
        self._folder = run.record.absolute() / f"{number:04d}" if run else None
        self._file = RecordFile(self._folder and self._folder / LOOP)
        self._repeated = (
            Recorded(RunFolder(attempt.folder.parent.parent), attempt.folder, attempt.lines) if attempt else None
        )
        self._num_deaths: Counter[int] = Counter()
        """By worker."""
        self.is_replay = attempt is not None
        self.last_step = attempt.last_step if attempt else None
        """Of a replay: the step after which the attempt ends."""

    def begin(self, config: ExperimentConfig, step: int, spool: Path, *, is_again: bool) -> None:
        """The attempt begins with the checkpoint of this step and with the groups that lie in the spool's folder."""
        kept = sorted(path.stem for path in spool.glob("*.jsonl"))
        if self._folder is not None:
            try:
                (self._folder / "config.yaml").write_text(dump_config(config), encoding="utf-8")
                if kept:
                    shutil.copytree(spool, self._folder / "kept")
            except OSError as error:
                logger.warning("this attempt cannot be replayed: %s", error)
        self._say("begin", step=step, again=is_again, kept=kept)

    def evaluates(self, label: str, step: int) -> bool:
        """Whether an evaluation that is due is made: in a replay, if the recorded attempt made it."""
        return self._repeated is None or self._repeated.has("evaluation", label=label, step=step)

    def starts(self) -> Sequence[int | None] | None:
        return self._repeated.next_of("starts")["workers"] if self._repeated else None

    def started(self, ordinals: Sequence[int], workers: Sequence[int | None]) -> None:
        self._say("starts", ordinals=ordinals, workers=workers)

    def collected(self, step: int, groups: Sequence[Group]) -> None:
        """These groups were handed over for the update that makes this step."""
        self._say_groups("groups", step, groups)

    def evaluated(self, label: str, step: int, groups: Sequence[Group]) -> None:
        self._say_groups("evaluation", step, groups, label=label)

    def updated(self, step: int, update: Update) -> None:
        """The update was made."""
        numbers = {name: value for name, value in asdict(update).items() if name != "seconds"}
        self._say("update", step=step, **numbers)

    def published(self, step: int, published: Publication) -> None:
        """Its weights are served."""
        self._say("weights", step=step, hash=getattr(published, "hash", ""))

    def engine_files(self, worker: int) -> EngineFiles | None:
        if self._folder is None:
            return None
        name = engine_file(worker, self._num_deaths[worker])
        record, difference = self._folder / name, self._folder / f"difference_{name}"
        if self._repeated is None:
            return EngineFiles(record, None, difference)
        ended = self._repeated.ended_groups(worker, self._num_deaths[worker])
        return EngineFiles(record, self._repeated.folder / name, difference, ended)

    def check_alive(self, worker: int, waiting_for: str = "") -> None:
        if self._repeated and (death := self._repeated.death(worker, waiting_for)):
            raise RecordedDeath(death["error"], death["lost"])

    def replaced(self, worker: int, error: Exception, waiting_for: str, lost: Sequence[str]) -> None:
        """Raises `ReplayDiffers` in a replay if the recorded worker did not die here: a new one has no script."""
        files = self.engine_files(worker)
        if self._repeated is not None and not isinstance(error, RecordedDeath):
            told = engine_difference(self._repeated, worker, files.difference, error) if files else str(error)
            raise ReplayDiffers(told)
        self._say("replaced", worker=worker, waiting_for=waiting_for, lost=lost, error=str(error))
        self._num_deaths[worker] += 1

    def close(self) -> None:
        self._file.close()

    def _say_groups(self, kind: str, step: int, groups: Sequence[Group], **more: str) -> None:
        if self._folder is None:
            return
        hashes = {group.group_id: [rollout_hash(rollout) for rollout in group.rollouts] for group in groups}
        self._say(kind, groups, step=step, hashes=hashes, **more)

    def _say(self, kind: str, groups: Sequence[Group] = (), **content: Any) -> None:
        if self._folder is None:
            return
        line = json.loads(json.dumps({"kind": kind, **content}))
        if self._repeated is not None and (recorded := self._repeated.take(line)) is not None:
            raise ReplayDiffers(line_difference(self._repeated, recorded, line, groups))
        self._file.write(line)


def rollout_hash(rollout: Rollout) -> str:
    """A hash of the tokens of the rollout's replies, and of how it ended."""
    replies = [turn.reply for turn in rollout.turns]
    tokens = [tokens_hash(reply.ids, reply.columns["logprob"], reply.columns["version"]) for reply in replies]
    return xxhash.xxh3_64_hexdigest(repr((tokens, rollout.reward, str(rollout.outcome), rollout.num_attempts)).encode())


def engine_file(worker: int, num_deaths: int = 0) -> str:
    """The name of the file of the worker's engine after so many deaths."""
    return f"engine_{worker}_{num_deaths}.jsonl" if num_deaths else f"engine_{worker}.jsonl"


def _attempt_folders(record: Path) -> list[Path]:
    return sorted(path for path in record.glob("[0-9]*") if path.is_dir())
