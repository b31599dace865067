"""How is a checkpoint written atomically, and which saved checkpoint can be trusted?

    checkpoints/step_000020/
      learner/         what `write_learner` wrote
      manifest.json    step, state (JSON), size and xxh3 hash of every file, and a hash of the manifest itself

A checkpoint is written to a hidden folder and renamed into place. The processes that write its files sync and hash
them; here the files on the disk are compared with what they tell. Reading verifies every byte. Other files in
`checkpoints/`, such as a copy `step_000020.bak`, are neither read nor removed.
"""

import json
import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from envs.errors import InputError
from envs.json_lines import JsonObject
from rl.config.saved_policy import holds_policy, policy_in
from rl.file_hashes import WrittenFile
from rl.runs.files import remove, storing, sync_folder
from rl.runs.manifest import CheckpointError, InvalidError, check_hashes, check_sizes, read_manifest, write_manifest

logger = logging.getLogger(__name__)
UNFINISHED, REPLACED = ".unfinished_", ".replaced_"
NAME = re.compile(rf"(?:{re.escape(REPLACED)})?step_([0-9]{{6,}})")
WriteLearner = Callable[[Path], Mapping[str, WrittenFile]]
"""Fills an existing empty folder, and tells its files, which are on the disk, by their names in the folder."""


class NoCheckpointError(CheckpointError, InputError):
    """There are checkpoints, and all of them are damaged."""


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
        """The policy's folder: all weights, or an adapter. Only the tokenizer unless it `has_policy`."""
        return policy_in(self.learner)

    @property
    def has_policy(self) -> bool:
        """Whether it holds the policy's folder, beside the slices of several ranks (`train.save_policy_every`)."""
        return holds_policy(self.policy)


def save_checkpoint(
    folder: Path,
    step: int,
    write_learner: WriteLearner,
    state: JsonObject,
    *,
    keep: int = 2,
    known: Checkpoint | None = None,
    needs_policy: bool = False,
) -> Checkpoint:
    """Write the checkpoint of a step into `folder` and delete all but the newest `keep` whole ones, and later ones.

    `state` must be JSON. Nothing is written if the step is already saved whole with this state, and with a policy if it
    `needs_policy`; another checkpoint of the step is replaced. Of the checkpoint that is `known` to this process the
    bytes are not read again for that. Raises `CheckpointError` if the state is not JSON, or if files that were told are
    missing, have another size, or were not told; `StorageError` if the disk is full or may not be written.
    """
    assert keep >= 1
    target, unfinished = folder / f"step_{step:06d}", folder / f"{UNFINISHED}step_{step:06d}"
    state = _as_json(step, state)
    saved = _saved_whole(target, state, known)
    if saved and (saved.has_policy or not needs_policy):
        return saved
    with storing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(f"{UNFINISHED}*"):  # of a run that was killed: free the space before writing
            remove(leftover)
        try:
            (unfinished / "learner").mkdir(parents=True, exist_ok=True)
            told = write_learner(unfinished / "learner")
            files = {f"learner/{name}": file for name, file in told.items()}
            write_manifest(unfinished, step, state, files)  # after the learner's files, which are on the disk
            _put_in_place(unfinished, target)
        except Exception:
            remove(unfinished)  # the disk may be full, and others need the space
            raise
        sync_folder(folder)  # the rename must be on the disk before older checkpoints are deleted
    _prune(folder, step, keep)
    return Checkpoint(target, step, state)


def _as_json(step: int, state: JsonObject) -> JsonObject:
    """The state as it will be read back."""
    try:
        return json.loads(json.dumps(state, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"the state of step {step} cannot be saved as JSON: {error}") from error


def _saved_whole(path: Path, state: JsonObject, known: Checkpoint | None) -> Checkpoint | None:
    """The checkpoint at this path if it is whole and has this state; every byte is read unless it is `known`."""
    try:
        content = read_manifest(path)
        if content["state"] != state:
            return None
        if known is None or known.path != path:
            return _verified(path)
        check_sizes(path, content["files"])
        return known
    except InvalidError:
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
        except InvalidError as reason:
            refused.append(f"{path}: {reason}")
            logger.warning("checkpoint %s is refused: %s; trying the one before it", path, reason)
    if refused:
        listed = "\n".join(f"  - {reason}" for reason in refused)
        raise NoCheckpointError(
            f"no checkpoint in {folder} can be used\n{listed}\n"
            "    fix: restore one from a copy, or move these folders away to begin from step 0"
        )
    return None


def _verified(path: Path) -> Checkpoint:
    content = read_manifest(path)
    check_sizes(path, content["files"])
    check_hashes(path, content["files"])
    if _step(path) != content["step"]:
        raise InvalidError(f"it holds step {content['step']}")
    return Checkpoint(path, content["step"], content["state"])


def _prune(folder: Path, step: int, keep: int) -> None:
    """Delete checkpoints older than the newest `keep` whole ones, the newest being that of `step`, which was written
    just now. Only sizes are checked: hashing may take long.

    Later steps are deleted too: they were refused when the run went on from before them, and are not of its course.
    """
    for replaced in folder.glob(f"{REPLACED}*"):
        remove(replaced)
    num_whole = 0
    for path in checkpoint_folders(folder):
        if num_whole >= keep or _step(path) > step:
            remove(path)
            continue
        try:
            check_sizes(path, read_manifest(path)["files"])
        except InvalidError:
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
