"""Are the files that tasks are drawn from those with which the run began? A resumed run would draw other tasks."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from envs.json_lines import JsonObject
from rl.config.experiment import ExperimentConfig
from rl.file_hashes import file_hash


def task_files(config: ExperimentConfig) -> dict[str, str]:
    """Hashes of the files that options and curricula of the environments name, by key."""
    found = {}
    for env_id, environment in config.environments.items():
        for key, value in _values(environment.model_dump(include={"options", "curriculum"}), f"environments.{env_id}"):
            if isinstance(value, str | Path) and _is_file(value):
                found[key] = file_hash(Path(value))
    return found


def changed_files(starts: Sequence[JsonObject], config: ExperimentConfig) -> list[str]:
    """Keys whose files are not those of the newest start, or are gone, one line a key."""
    before = starts[-1].get("task_files", {}) if starts else {}
    now = task_files(config)
    return [
        f"{key}: the file has changed since the run began, and so would the tasks of its next steps"
        for key, digest in before.items()
        if now.get(key) != digest
    ]


def _values(value: Any, key: str) -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _values(inner, f"{key}.{name}")
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _values(inner, f"{key}[{number}]")
    else:
        yield key, value


def _is_file(value: str | Path) -> bool:
    try:
        return Path(value).is_file()
    except (OSError, ValueError):  # of a text that is no path
        return False
