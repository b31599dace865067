"""How is a checkpoint written atomically, and which saved checkpoint can be trusted?

    checkpoints/step_000020/
      learner/         what `write_learner` wrote
      manifest.json    step, state (JSON), size and xxh3 hash of every file, and a hash of the manifest itself

A checkpoint is written to a hidden folder, synced to the disk, and renamed into place. Reading verifies every byte.
Other files in `checkpoints/`, such as a copy `step_000020.bak`, are neither read nor removed.
"""

import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import xxhash

from envs.errors import InputError
from envs.json_lines import JsonObject
from rl.config.saved_policy import policy_in
from rl.runs.files import remove, storing, sync_folder

logger = logging.getLogger(__name__)
UNFINISHED, REPLACED = ".unfinished_", ".replaced_"
NAME = re.compile(rf"(?:{re.escape(REPLACED)})?step_([0-9]{{6,}})")
BLOCK_BYTES = 1 << 20


class CheckpointError(ValueError):
    """Checkpoints exist but none of them can be used, or the state to save is not JSON."""


class NoCheckpointError(CheckpointError, InputError):
    """There are checkpoints, and all of them are damaged."""


class _Invalid(Exception):
    """A checkpoint cannot be trusted; the text says why."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint whose every byte was verified, or that this process has just written."""

    path: Path
    step: int
    state: JsonObject

    @property
    def learner(self) -> Path:
        """The folder that `write_learner` filled."""
        return self.path / "learner"

    @property
    def policy(self) -> Path:
        """The policy's folder: all weights, or an adapter."""
        return policy_in(self.learner)


def save_checkpoint(
    folder: Path, step: int, write_learner: Callable[[Path], None], state: JsonObject, *, keep: int = 2
) -> Checkpoint:
    """Write the checkpoint of a step into `folder` and delete all but the newest `keep` whole ones.

    `write_learner` is given an existing empty folder. `state` must be JSON. Nothing is written if the step is already
    saved whole with this state; another checkpoint of the step is replaced. Raises `CheckpointError` if the state is
    not JSON, `StorageError` if the disk is full or may not be written.
    """
    assert keep >= 1
    target, unfinished = folder / f"step_{step:06d}", folder / f"{UNFINISHED}step_{step:06d}"
    state = _as_json(step, state)
    if (saved := _saved_whole(target)) and saved.state == state:
        return saved
    with storing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(f"{UNFINISHED}*"):  # of a run that was killed: free the space before writing
            remove(leftover)
        try:
            (unfinished / "learner").mkdir(parents=True, exist_ok=True)
            write_learner(unfinished / "learner")
            _write_manifest(unfinished, step, state)  # after the learner's files, which it hashes
            _put_in_place(unfinished, target)
        except Exception:
            remove(unfinished)  # the disk may be full, and others need the space
            raise
        sync_folder(folder)  # the rename must be on the disk before older checkpoints are deleted
    _prune(folder, keep)
    return Checkpoint(target, step, state)


def _as_json(step: int, state: JsonObject) -> JsonObject:
    """The state as it will be read back."""
    try:
        return json.loads(json.dumps(state, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"the state of step {step} cannot be saved as JSON: {error}") from error


def _saved_whole(path: Path) -> Checkpoint | None:
    try:
        return _verified(path)
    except _Invalid:
        return None


def _put_in_place(unfinished: Path, target: Path) -> None:
    """Rename into place. An old checkpoint of the step is renamed first; it stays readable under its other name."""
    if os.path.lexists(target):
        replaced = target.with_name(REPLACED + target.name)
        remove(replaced)
        target.rename(replaced)
    unfinished.rename(target)


def latest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest undamaged checkpoint; None if there is no checkpoint at all.

    A damaged checkpoint is skipped with a logged warning. Raises `NoCheckpointError` if all checkpoints are damaged.
    """
    refused = []
    for path in checkpoint_folders(folder):
        try:
            return _verified(path)
        except _Invalid as reason:
            refused.append(f"{path}: {reason}")
            logger.warning("checkpoint %s is refused: %s; trying the one before it", path, reason)
    if refused:
        listed = "\n".join(f"  - {reason}" for reason in refused)
        raise NoCheckpointError(
            f"no checkpoint in {folder} can be used\n{listed}\n"
            "    fix: restore one from a copy, or move these folders away to begin from step 0"
        )
    return None


def _write_manifest(path: Path, step: int, state: JsonObject) -> None:
    files = {}
    for file in _files(path):
        files[str(file.relative_to(path))] = {"size": file.stat().st_size, "xxh3": _hash(file)}
        _sync(file)
    text = json.dumps({"step": step, "state": state, "files": files})
    manifest = path / "manifest.json"
    manifest.write_text(json.dumps({"xxh3": xxhash.xxh3_64_hexdigest(text.encode()), "content": text}) + "\n")
    _sync(manifest)
    for directory in [path, *(entry for entry in path.rglob("*") if entry.is_dir())]:
        sync_folder(directory)


def _read_manifest(path: Path) -> JsonObject:
    try:
        manifest = json.loads((path / "manifest.json").read_bytes())
        text, expected = manifest["content"], manifest["xxh3"]
    except FileNotFoundError:
        raise _Invalid("manifest.json is missing, so it was not written whole") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise _Invalid("manifest.json is damaged") from None
    if xxhash.xxh3_64_hexdigest(str(text).encode()) != expected:
        raise _Invalid("manifest.json was changed after it was written")
    return json.loads(text)


def _check_sizes(path: Path, files: Mapping[str, JsonObject]) -> None:
    for name, entry in files.items():
        file = path / name
        if not file.is_file():
            raise _Invalid(f"{name} is missing")
        if file.stat().st_size != entry["size"]:
            raise _Invalid(f"{name} has {file.stat().st_size} bytes and was written with {entry['size']}")


def _verified(path: Path) -> Checkpoint:
    content = _read_manifest(path)
    _check_sizes(path, content["files"])
    for name, entry in content["files"].items():
        try:
            is_as_written = _hash(path / name) == entry["xxh3"]
        except OSError as error:
            raise _Invalid(f"{name} cannot be read: {error.strerror}") from None
        if not is_as_written:
            raise _Invalid(f"{name} was changed after it was written")
    if _step(path) != content["step"]:
        raise _Invalid(f"it holds step {content['step']}")
    return Checkpoint(path, content["step"], content["state"])


def _prune(folder: Path, keep: int) -> None:
    """Delete checkpoints older than the newest `keep` whole ones. Only sizes are checked: hashing may take long."""
    for replaced in folder.glob(f"{REPLACED}*"):
        remove(replaced)
    num_whole = 0
    for path in checkpoint_folders(folder):
        if num_whole >= keep:
            remove(path)
            continue
        try:
            _check_sizes(path, _read_manifest(path)["files"])
        except _Invalid:
            continue
        num_whole += 1


def checkpoint_folders(folder: Path) -> list[Path]:
    """Folders that hold a checkpoint by their name, whole or not, newest step first.

    One that was being replaced when the run was killed comes after the one that replaces it.
    """
    found = [path for path in folder.glob("*step_*") if NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: (_step(path), path.name), reverse=True)


def _step(path: Path) -> int:
    name = NAME.fullmatch(path.name)
    assert name is not None
    return int(name[1])


def _files(path: Path) -> Iterator[Path]:
    """All files except those that a network file system keeps for removed, still open files: they will disappear."""
    yield from sorted(entry for entry in path.rglob("*") if entry.is_file() and not entry.name.startswith(".nfs"))


def _hash(file: Path) -> str:
    digest = xxhash.xxh3_64()
    with file.open("rb") as opened:
        while block := opened.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _sync(file: Path) -> None:
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
