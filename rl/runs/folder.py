"""Which files are in a run folder, which process may write them, and what is dropped when a run is resumed?

config.yaml       the whole resolved configuration
versions.json     packages, Python, platform, git commit and environments; one entry a start
metrics.jsonl     one line per step, evaluation and note: the run's record, which --resume and the report read
rollouts/         one file of JSON lines per saved step
tokens.json       the text of every token by its id
paused            the reasons of a pause, while the run pauses (rl.runs.pause)
tracking_id       the id by which W&B, MLflow and trackio know the run again
checkpoints/      see rl.runs.checkpoint
spool/            groups that ended and are in no checkpoint yet (rl.runs.spool)
record/           what decided the course of an asynchronous run (rl.runs.recording)
run.log           log of all processes; when it is large, the older part is run.log.1 (rl.run_log)
sft/              checkpoint and metrics of the supervised stage
figures/, report.html

Sinks write more files (see rl.runs.sinks). Other files here are not touched.
"""

import contextlib
import fcntl
import json
import logging
import os
import re
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from envs.json_lines import JsonObject, read_lines
from rl.config.errors import ConfigError
from rl.config.experiment import ExperimentConfig
from rl.config.read import dump_config, load_config
from rl.run_log import run_log
from rl.runs.checkpoint import Checkpoint, checkpoint_folders, latest_checkpoint
from rl.runs.files import keep_lines, remove, storing, write_atomically
from rl.runs.resume import differences, remarks
from rl.runs.task_files import changed_files
from rl.runs.versions import add_versions, read_versions, start_line

logger = logging.getLogger(__name__)
Kind = Literal["train", "evaluation"]


class RunFolderError(ConfigError):
    """The run folder cannot be used to begin or resume this run."""


class RunFolder:
    """The places in a run's folder. `RunFolder.open` begins or resumes a run in it."""

    def __init__(self, path: Path, newest: Checkpoint | None = None) -> None:
        self.path = path
        self.newest = newest
        """The newest checkpoint that this process verified or wrote, from which the run goes on; None if there is none
        yet, or the run was not opened to be resumed."""
        self.config_file = path / "config.yaml"
        self.versions_file = path / "versions.json"
        self.metrics_file = path / "metrics.jsonl"
        self.paused_file = path / "paused"
        self.rollouts = path / "rollouts"
        self.checkpoints = path / "checkpoints"
        self.spool = path / "spool"
        self.record = path / "record"
        self.sft = path / "sft"
        """The supervised stage's checkpoint; it exists when that stage is complete."""
        self.sft_metrics_file = self.sft / "metrics.jsonl"
        self.sft_sources_file = self.sft / "sources.jsonl"
        self.evaluation_file = path / "evaluation.json"
        self.evaluation_rollouts_file = path / "evaluation" / "rollouts.jsonl"
        """Rollouts of the last `rl evaluate`."""
        self.report_file = path / "report.html"

    @classmethod
    @contextlib.contextmanager
    def open(cls, config: ExperimentConfig, *, resume: bool | None = False) -> Iterator["RunFolder"]:
        """Begin or resume the run in `config.run_dir`, locked against other processes inside the block.

        `resume` None resumes if a run left results there, and otherwise begins one.

        On resume, everything that was written after the newest valid checkpoint is dropped, and warnings for the user
        are logged. Raises `RunFolderError` when the folder holds a run already, holds none to resume, is in use, or was
        started with another configuration; `StorageError` when it cannot be made or written; `CheckpointError` when
        there are checkpoints and none can be used.
        """
        path = config.run_dir
        with storing(path):
            if path.is_file():
                raise RunFolderError(f"run_dir: {path} is a file; choose another run_dir")
            path.mkdir(parents=True, exist_ok=True)
        with locked(path):
            folder, said = cls(path), list[str]()
            holds_results = folder.config_file.exists() and folder._holds_results()
            resume = holds_results if resume is None else resume
            if resume:
                newest, said = folder._checked_newest(config)
                folder = cls(path, newest)
            elif holds_results:
                raise RunFolderError(
                    f"run_dir: {path} already holds a run; continue it with --resume, choose another run_dir=..., or"
                    " delete the folder"
                )
            with run_log(path, "driver", start_line()):  # not before: an error above concerns another run
                for remark in said:
                    logger.warning(remark)
                write_atomically(folder.config_file, dump_config(config))
                add_versions(folder.versions_file, config)
                for place in (folder.rollouts, folder.checkpoints):
                    with storing(place):
                        place.mkdir(exist_ok=True)
                if resume:
                    folder.drop_after(folder.saved_step, config.train.num_steps)
                else:
                    for place in (folder.spool, folder.record):
                        remove(place)  # of a start that left no results, maybe with another configuration
                yield folder

    @property
    def saved_step(self) -> int:
        """The step to which a crash would go back."""
        return self.newest.step if self.newest else 0

    @property
    def holds_run(self) -> bool:
        """Whether a run, a supervised stage or an evaluation wrote here."""
        begun = self.config_file.is_file() and self.versions_file.is_file()
        return begun or any(file.is_file() for file in (self.metrics_file, self.evaluation_file, self.sft_metrics_file))

    def link_sft(self, other: "RunFolder") -> None:
        """Use the supervised policy of another run, if that has one and this run none."""
        if other.sft.exists() and not self.sft.exists():
            with storing(self.sft):
                self.sft.symlink_to(other.sft.absolute())

    def save_token_texts(self, texts: Sequence[str]) -> None:
        """Save the texts of the tokens, with which rollout pages show what was sampled."""
        write_atomically(self.path / "tokens.json", json.dumps(list(texts)))

    def rollouts_file(self, step: int, kind: Kind) -> Path:
        return self.rollouts / f"{kind}_{step:06d}.jsonl"

    def rollouts_files(self, kind: Kind) -> dict[int, Path]:
        """Files of saved rollouts by step, in the order of steps; files of other names are left out."""
        name = re.compile(rf"{kind}_([0-9]{{6,}})\.jsonl")
        found = {
            int(match[1]): path
            for path in self.rollouts.glob(f"{kind}_*.jsonl")
            if (match := name.fullmatch(path.name)) and path.is_file()
        }
        return dict(sorted(found.items()))

    def drop_after(self, step: int, num_steps: int) -> None:
        """Drop metrics and rollouts of steps after `step`, and evaluations that must be repeated.

        Those are a final evaluation that is no longer final, and one of `step` itself that ended before its rollouts
        were saved. Rollouts of earlier ones may have been removed, to free space.
        """
        evaluated = self.rollouts_files("evaluation")

        def is_kept(line: JsonObject) -> bool:
            if line.get("kind") != "evaluation":
                return line.get("step", 0) <= step
            is_outdated = line["label"] == "after" and line["step"] < num_steps
            is_whole = line["step"] in evaluated or line["step"] < step
            return line["step"] <= step and is_whole and not is_outdated

        dropped = {line["step"] for line in read_lines(self.metrics_file) if not is_kept(line)}
        keep_lines(self.metrics_file, is_kept)
        stale = [path for trained, path in self.rollouts_files("train").items() if trained > step]
        stale += [path for number, path in evaluated.items() if number > step or number in dropped]
        for path in stale:
            with storing(path):
                path.unlink()

    def go_back(self, num_steps: int) -> None:
        """Make the newest valid checkpoint `newest`, and drop everything that was written after it, as on resume."""
        self.newest = latest_checkpoint(self.checkpoints)
        self.drop_after(self.saved_step, num_steps)

    def _holds_results(self) -> bool:
        """Whether anything would be lost; a start that failed early leaves nothing."""
        has_metrics = self.metrics_file.exists() and self.metrics_file.stat().st_size > 0
        return has_metrics or self.sft.exists() or bool(checkpoint_folders(self.checkpoints))

    def _checked_newest(self, config: ExperimentConfig) -> tuple[Checkpoint | None, list[str]]:
        """The checkpoint to go on from, when the run may go on from it with this configuration, and warnings."""
        if not self.config_file.exists():
            raise RunFolderError(f"run_dir: {self.path} holds no run to resume; omit --resume to begin a run")
        saved, newest = load_config(self.config_file), latest_checkpoint(self.checkpoints)
        differing = differences(saved, config, newest)
        if differing:
            listed = "\n".join(f"  - {difference}" for difference in differing)
            raise RunFolderError(
                f"run_dir: the run in {self.path} was started with another configuration\n{listed}\n"
                "    fix: set these keys back to resume, or choose another run_dir=... for a new run"
            )
        if changed := changed_files(read_versions(self.versions_file), config):
            listed = "\n".join(f"  - {line}" for line in changed)
            raise RunFolderError(
                f"run_dir: the run in {self.path} draws its tasks from files\n{listed}\n"
                "    fix: put the old files back to resume, or begin a new run from this one's policy (`rl export`) in"
                " another run_dir=...; if other tasks are wanted, or none are drawn from a file, remove it from"
                f" task_files in {self.versions_file}"
            )
        return newest, remarks(saved, config, self.metrics_file, newest)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes from writing in this folder. Raises `RunFolderError` if one does."""
    with storing(path / ".lock"):
        file = (path / ".lock").open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            raise RunFolderError(
                f"run_dir: {path} is being written by {holder}; wait for it to end, stop it, or choose another"
                " run_dir=..."
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
    with file:
        yield
