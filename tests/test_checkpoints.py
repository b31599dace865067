"""Checkpoints: whole or absent, verified on reading, the one before when the newest is damaged."""

import errno
import logging
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from rl.file_hashes import WrittenFile, files_in, sync_and_hash
from rl.runs.checkpoint import Checkpoint, CheckpointError, latest_checkpoint, save_checkpoint
from rl.runs.files import StorageError


def write_learner(folder: Path) -> dict[str, WrittenFile]:
    (folder / "model.bin").write_bytes(b"weights " * 100)
    (folder / "optimizer").mkdir()
    (folder / "optimizer" / "state.bin").write_bytes(b"moments")
    return sync_and_hash(folder, files_in(folder))


def save(folder: Path, step: int, keep: int = 3) -> Checkpoint:
    return save_checkpoint(folder, step, write_learner, {"ledger": {"next": step * 8}}, keep=keep)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_was_saved_is_read_again(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "checkpoints") is None
    saved = save(tmp_path / "checkpoints", 20)
    read = latest_checkpoint(tmp_path / "checkpoints")
    assert read is not None and read == saved
    assert read.path.name == "step_000020"
    assert (read.step, read.state) == (20, {"ledger": {"next": 160}})
    assert (read.learner / "optimizer" / "state.bin").read_bytes() == b"moments"


def test_the_newest_by_number_is_taken_and_old_ones_are_deleted(tmp_path: Path) -> None:
    for step in (5, 10, 999_999, 1_000_000):
        save(tmp_path, step, keep=2)
    assert names(tmp_path) == ["step_1000000", "step_999999"]
    newest = latest_checkpoint(tmp_path)
    assert newest is not None and newest.step == 1_000_000


def damage(path: Path, how: str) -> None:
    model, manifest = path / "learner" / "model.bin", path / "manifest.json"
    if how == "truncated":
        model.write_bytes(model.read_bytes()[:-1])
    elif how == "flipped byte":
        content = bytearray(model.read_bytes())
        content[400] ^= 1
        model.write_bytes(bytes(content))
    elif how == "missing file":
        model.unlink()
    elif how == "missing manifest":
        manifest.unlink()
    elif how == "half a manifest":
        manifest.write_text(manifest.read_text()[:40])
    elif how == "changed state":
        manifest.write_text(manifest.read_text().replace("160", "161"))
    elif how == "renamed":
        path.rename(path.with_name("step_000021"))


DAMAGES = {
    "truncated": "model.bin has 799 bytes and was written with 800",
    "flipped byte": "model.bin was changed after it was written",
    "missing file": "model.bin is missing",
    "missing manifest": "manifest.json is missing",
    "half a manifest": "manifest.json is damaged",
    "changed state": "manifest.json was changed",
    "renamed": "it holds step 20",
}


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_checkpoint_is_refused_and_the_one_before_is_taken(
    how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 10)
    damage(save(tmp_path, 20).path, how)
    with caplog.at_level(logging.WARNING):
        read = latest_checkpoint(tmp_path)
    assert read is not None and read.step == 10
    assert DAMAGES[how] in caplog.text


def test_damage_to_all_checkpoints_is_an_error_that_names_each(tmp_path: Path) -> None:
    damage(save(tmp_path, 10).path, "truncated")
    damage(save(tmp_path, 20).path, "missing manifest")
    with pytest.raises(CheckpointError) as caught:
        latest_checkpoint(tmp_path)
    message = str(caught.value)
    assert "step_000010" in message and "step_000020" in message and "fix: restore one" in message


@pytest.mark.parametrize("signal", [RuntimeError, KeyboardInterrupt])
def test_a_failure_while_writing_leaves_the_one_before(signal: type[BaseException], tmp_path: Path) -> None:
    save(tmp_path, 10)

    def fail(folder: Path) -> dict[str, WrittenFile]:
        write_learner(folder)
        raise signal

    with pytest.raises(signal):
        save_checkpoint(tmp_path, 20, fail, {})
    read = latest_checkpoint(tmp_path)
    assert read is not None and read.step == 10
    save(tmp_path, 30)
    assert names(tmp_path) == ["step_000010", "step_000030"]


def test_a_kill_between_write_and_rename_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 10)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        save(tmp_path, 20)
    assert names(tmp_path) == [".unfinished_step_000020", "step_000010"]
    read = latest_checkpoint(tmp_path)
    assert read is not None and read.step == 10
    save(tmp_path, 20)
    assert names(tmp_path) == ["step_000010", "step_000020"]


def test_a_step_saved_again_replaces_its_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 20)
    save_checkpoint(tmp_path, 20, write_learner, {"ledger": "new"})
    read = latest_checkpoint(tmp_path)
    assert read is not None and read.state == {"ledger": "new"}
    assert names(tmp_path) == ["step_000020"]


def test_half_checkpoints_do_not_count_among_those_kept(tmp_path: Path) -> None:
    save(tmp_path, 10)
    damage(save(tmp_path, 20).path, "truncated")
    save(tmp_path, 30, keep=2)
    assert names(tmp_path) == ["step_000010", "step_000020", "step_000030"]
    save(tmp_path, 40, keep=2)
    assert names(tmp_path) == ["step_000030", "step_000040"]


def test_a_refused_checkpoint_of_a_later_step_makes_room_for_the_course_that_goes_on(tmp_path: Path) -> None:
    save(tmp_path, 10)
    damage(save(tmp_path, 20).path, "flipped byte")
    newest = latest_checkpoint(tmp_path)
    assert newest is not None and newest.step == 10
    assert save(tmp_path, 12, keep=1).path.is_dir()
    assert names(tmp_path) == ["step_000012"]


def test_a_copied_checkpoint_is_still_valid(tmp_path: Path) -> None:
    saved = save(tmp_path / "first", 20)
    (tmp_path / "second").mkdir()
    shutil.copytree(saved.path, tmp_path / "second" / "step_000020")
    read = latest_checkpoint(tmp_path / "second")
    assert read is not None and read.state == saved.state


@pytest.mark.parametrize("state", [{"x": object()}, {"x": float("nan")}])
def test_a_state_that_is_not_json_is_refused(state: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be saved as JSON"):
        save_checkpoint(tmp_path, 20, write_learner, state)
    assert latest_checkpoint(tmp_path) is None


STRAYS = ("step_000020.bak", "step_000020 (copy)", "step_", "step_last", "step_20~", "#step_000020#", ".DS_Store", "x")


@pytest.mark.parametrize("name", STRAYS)
@pytest.mark.parametrize("kind", ["file", "folder", "copy", "link to nothing"])
def test_whatever_else_lies_beside_the_checkpoints_is_left_alone(name: str, kind: str, tmp_path: Path) -> None:
    saved, stray = save(tmp_path, 20), tmp_path / name
    if kind == "file":
        stray.write_text("mine")
    elif kind == "folder":
        stray.mkdir()
    elif kind == "copy":
        shutil.copytree(saved.path, stray)
    else:
        stray.symlink_to(tmp_path / "nowhere")
    read = latest_checkpoint(tmp_path)
    assert read is not None and read.step == 20
    save(tmp_path, 30, keep=1)
    assert names(tmp_path) == sorted([name, "step_000030"])


def test_links_and_files_under_a_checkpoint_s_name_end_nothing(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    save(elsewhere, 10)
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "step_000010").symlink_to(elsewhere / "step_000010", target_is_directory=True)
    (folder / "step_000040").write_text("a file")
    (folder / ".unfinished_notes").write_text("a file")
    read = latest_checkpoint(folder)
    assert read is not None and read.step == 10
    save(folder, 20, keep=1)
    assert names(folder) == ["step_000020", "step_000040"]
    assert (elsewhere / "step_000010" / "manifest.json").exists()
    save(folder, 40, keep=1)
    assert names(folder) == ["step_000040"] and (folder / "step_000040").is_dir()


def test_what_cannot_be_removed_of_an_unfinished_checkpoint_does_not_keep_the_next_from_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".unfinished_step_000020" / "learner").mkdir(parents=True)
    (tmp_path / ".unfinished_step_000020" / "learner" / ".nfs000000000001").write_text("still open")
    monkeypatch.setattr("rl.runs.checkpoint.remove", lambda path: None)
    saved = save(tmp_path, 20)
    assert latest_checkpoint(tmp_path) == saved


def fail(folder: Path) -> dict[str, WrittenFile]:
    raise AssertionError("written again")


def test_a_step_that_is_saved_whole_is_not_written_again(tmp_path: Path) -> None:
    first = save(tmp_path, 20)
    assert save_checkpoint(tmp_path, 20, fail, first.state) == first


def test_of_a_step_that_this_process_wrote_only_sizes_are_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = save(tmp_path, 20)
    monkeypatch.setattr("rl.runs.manifest.file_hash", lambda file: "read again")
    assert save_checkpoint(tmp_path, 20, fail, known.state, known=known) == known
    damage(known.path, "truncated")
    assert save_checkpoint(tmp_path, 20, write_learner, known.state, known=known) == known
    assert (known.learner / "model.bin").stat().st_size == 800


def test_a_step_that_is_saved_without_the_policy_that_is_wanted_is_written_again(tmp_path: Path) -> None:
    def write(folder: Path) -> dict[str, WrittenFile]:
        (folder / "model").mkdir()
        (folder / "model" / "config.json").write_text("{}")
        return write_learner(folder)

    known = save(tmp_path, 20)
    assert not known.has_policy
    saved = save_checkpoint(tmp_path, 20, write, known.state, known=known, needs_policy=True)
    assert saved.has_policy and latest_checkpoint(tmp_path) == saved
    assert save_checkpoint(tmp_path, 20, fail, known.state, known=saved, needs_policy=True) == saved


@pytest.mark.parametrize("how", ["flipped byte", "truncated", "missing manifest", "missing file"])
def test_a_step_that_is_saved_damaged_is_written_again(how: str, tmp_path: Path) -> None:
    state = save(tmp_path, 20).state
    damage(tmp_path / "step_000020", how)
    saved = save_checkpoint(tmp_path, 20, write_learner, state)
    assert latest_checkpoint(tmp_path) == saved


def test_a_kill_while_a_checkpoint_is_replaced_leaves_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 20, keep=1)
    rename = Path.rename

    def killed_before_the_new_one_is_in_place(path: Path, target: Path) -> Path:
        if target.name == "step_000020":
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "rename", killed_before_the_new_one_is_in_place)
        save_checkpoint(tmp_path, 20, write_learner, {"ledger": "new"}, keep=1)
    read = latest_checkpoint(tmp_path)
    assert read is not None and read.step == 20 and read.state != {"ledger": "new"}
    assert (read.learner / "model.bin").is_file()
    save_checkpoint(tmp_path, 20, write_learner, {"ledger": "new"}, keep=1)
    read = latest_checkpoint(tmp_path)
    assert read is not None and read.state == {"ledger": "new"}
    assert names(tmp_path) == ["step_000020"]


def test_a_replaced_checkpoint_does_not_count_among_those_kept(tmp_path: Path) -> None:
    save(tmp_path, 10)
    save(tmp_path, 20)
    save_checkpoint(tmp_path, 20, write_learner, {"ledger": "new"}, keep=2)
    assert names(tmp_path) == ["step_000010", "step_000020"]


class FailedInRay(Exception):
    """As Ray wraps the error of an actor."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


FULL = OSError(errno.ENOSPC, "No space left on device")
FAILURES = {
    "system": (FULL, "No space left on device", "free some space there"),
    "safetensors": (
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
        "No space left on device",
        "free some space there",
    ),
    "actor": (FailedInRay(OSError(errno.EROFS, "x")), "Read-only file system", "mount it for writing"),
    "quota": (OSError(errno.EDQUOT, "x"), "Disk quota exceeded", "free some of the quota"),
    "rights": (PermissionError(errno.EACCES, "x"), "Permission denied", "the right to write there"),
    "hardware": (OSError(errno.EIO, "x"), "Input/output error", "see to the disk"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_disk_that_fails_is_told_with_its_path_and_fix_and_leaves_the_one_before(name: str, tmp_path: Path) -> None:
    error, *words = FAILURES[name]
    save(tmp_path, 10)

    def fail(folder: Path) -> dict[str, WrittenFile]:
        write_learner(folder)
        raise error

    with pytest.raises(StorageError) as caught:
        save_checkpoint(tmp_path, 20, fail, {})
    assert all(word in str(caught.value) for word in [str(tmp_path), "fix: ", *words]), caught.value
    assert names(tmp_path) == ["step_000010"]


@pytest.mark.parametrize(("free", "words"), [(0, "No space left on device"), (10**9, "Input/output error")])
def test_torch_says_nothing_of_a_full_disk_but_the_disk_does(
    free: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(folder: Path) -> dict[str, WrittenFile]:
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")

    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    with pytest.raises(StorageError, match=words):
        save_checkpoint(tmp_path, 20, fail, {})


@pytest.mark.parametrize(
    "error", [TimeoutError("an update took longer"), ConnectionResetError(104, "reset"), ValueError("a bug")]
)
def test_an_error_that_is_not_the_disk_s_is_raised_as_it_is(error: Exception, tmp_path: Path) -> None:
    def fail(folder: Path) -> dict[str, WrittenFile]:
        raise error

    with pytest.raises(type(error), match=re.escape(str(error))):
        save_checkpoint(tmp_path, 20, fail, {})
