"""A checkpoint's manifest: the files on the disk are those that their writers told."""

import json
import re
from pathlib import Path

import pytest

from rl.file_hashes import WrittenFile
from rl.runs.checkpoint import CheckpointError, latest_checkpoint, save_checkpoint
from tests.test_checkpoints import names, save, write_learner


def test_the_manifest_lists_every_file_with_its_size(tmp_path: Path) -> None:
    manifest = json.loads((save(tmp_path, 20).path / "manifest.json").read_text())
    files = json.loads(manifest["content"])["files"]
    assert {name: entry["size"] for name, entry in files.items()} == {
        "learner/model.bin": 800,
        "learner/optimizer/state.bin": 7,
    }


def test_hashes_are_those_that_the_writers_told(tmp_path: Path) -> None:
    def write(folder: Path) -> dict[str, WrittenFile]:
        return write_learner(folder) | {"model.bin": WrittenFile(800, "0" * 16)}

    save_checkpoint(tmp_path, 20, write, {})  # the bytes are not read again
    with pytest.raises(CheckpointError, match=r"model\.bin was changed after it was written"):
        latest_checkpoint(tmp_path)


TOLD = {
    "missing": ({"more.bin": WrittenFile(3, "")}, "learner/more.bin is missing, of 3 bytes"),
    "size": ({"model.bin": WrittenFile(801, "")}, "learner/model.bin has 800 bytes and was written with 801"),
    "not told": ({}, "learner/extra.bin was written, and no process told its hash"),
}


@pytest.mark.parametrize("what", TOLD)
def test_files_that_are_not_those_that_were_told_leave_the_one_before(what: str, tmp_path: Path) -> None:
    changed, words = TOLD[what]
    save(tmp_path, 10)

    def write(folder: Path) -> dict[str, WrittenFile]:
        told = write_learner(folder)
        if what == "not told":
            (folder / "extra.bin").write_text("whose?")
        return told | changed

    with pytest.raises(CheckpointError, match=re.escape(words)):
        save_checkpoint(tmp_path, 20, write, {})
    assert names(tmp_path) == ["step_000010"]


def test_what_a_network_file_system_keeps_of_removed_files_is_no_part_of_a_checkpoint(tmp_path: Path) -> None:
    def write(folder: Path) -> dict[str, WrittenFile]:
        (folder / ".nfs000000000001").write_text("gone soon")
        return write_learner(folder)

    saved = save_checkpoint(tmp_path, 20, write, {})
    (saved.learner / ".nfs000000000001").unlink()
    assert latest_checkpoint(tmp_path) == saved
