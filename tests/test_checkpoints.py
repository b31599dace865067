"""Checkpoints: whole or absent, verified on reading, the one before when the newest is damaged."""

import json
import logging
import shutil
from pathlib import Path

import pytest

from rl.runs.checkpoint import Checkpoint, CheckpointError, latest_checkpoint, save_checkpoint


def write_learner(folder: Path) -> None:
    (folder / "model.bin").write_bytes(b"weights " * 100)
    (folder / "optimizer").mkdir()
    (folder / "optimizer" / "state.bin").write_bytes(b"moments")


def save(folder: Path, step: int, keep: int = 3) -> Checkpoint:
    return save_checkpoint(folder, step, write_learner, {"ledger": {"next": step * 8}}, keep=keep)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_was_saved_is_read_again(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "checkpoints") is None
    saved = save(tmp_path / "checkpoints", 20)
    read = latest_checkpoint(tmp_path / "checkpoints")
    assert read == saved
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

    def fail(folder: Path) -> None:
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


def test_the_manifest_lists_every_file_with_its_size(tmp_path: Path) -> None:
    manifest = json.loads((save(tmp_path, 20).path / "manifest.json").read_text())
    files = json.loads(manifest["content"])["files"]
    assert {name: entry["size"] for name, entry in files.items()} == {
        "learner/model.bin": 800,
        "learner/optimizer/state.bin": 7,
    }
