"""The run folder: who may write it, what a resumed run keeps, and what strays and damage cost."""

import io
import json
import logging
import multiprocessing
import re
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from envs.json_lines import read_lines
from rl.config.read import load_config
from rl.file_hashes import WrittenFile, files_in, sync_and_hash
from rl.runs.checkpoint import save_checkpoint
from rl.runs.files import StorageError
from rl.runs.folder import RunFolder, RunFolderError
from rl.runs.inspect import show_rollouts
from rl.runs.report import write_report
from rl.runs.resume import differences, recomputed
from rl.runs.tracker import Tracker
from rl.runs.versions import VersionsError
from rl.tasks.stream import TaskStream
from tests.makers import (
    ARITHMETIC,
    STORE,
    make_config,
    make_run_config,
    save_empty_checkpoint,
    write_run,
)


def test_a_new_run_holds_its_configuration_and_versions(tmp_path: Path) -> None:
    config = make_run_config(tmp_path / "run")
    with RunFolder.open(config) as run:
        assert load_config(run.config_file) == config
        (start,) = json.loads(run.versions_file.read_text())
    assert start["python"].startswith("3.11")
    assert "torch" in start["packages"] and ARITHMETIC in start["environments"]
    assert not run.sft.exists()


def test_a_run_with_results_is_not_overwritten(tmp_path: Path) -> None:
    config = make_run_config(write_run(make_run_config(tmp_path / "run"), 2))
    with pytest.raises(RunFolderError, match=r"already holds a run; continue it with --resume, choose another"):
        RunFolder.open(config).__enter__()


def test_a_start_that_failed_before_any_result_may_be_repeated(tmp_path: Path) -> None:
    with RunFolder.open(make_run_config(tmp_path / "run")):
        pass
    with RunFolder.open(make_run_config(tmp_path / "run", seed=2)) as run:
        assert load_config(run.config_file).seed == 2
        assert len(json.loads(run.versions_file.read_text())) == 2


def test_resuming_refuses_other_contents_of_the_files_that_tasks_are_drawn_from(tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("first")
    options = {"data": str(data), "more": [{"notes": "no path"}, "x" * 5000]}
    config = make_run_config(tmp_path / "run", environments={ARITHMETIC: {"options": options}})
    run = RunFolder(write_run(config, 2))
    save_empty_checkpoint(run, 2)
    with RunFolder.open(config, resume=True):
        pass
    key = f"environments.{ARITHMETIC}.options.data"
    for change in (lambda: data.write_text("other"), data.unlink):
        change()
        with pytest.raises(RunFolderError, match=f"{key}: the file has changed since the run began"):
            RunFolder.open(config, resume=True).__enter__()
    data.write_text("first")
    with RunFolder.open(config, resume=True):
        pass


def test_resuming_needs_a_run_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="holds no run to resume"):
        RunFolder.open(make_run_config(tmp_path / "run"), resume=True).__enter__()
    (tmp_path / "file").touch()
    with pytest.raises(RunFolderError, match="is a file; choose another run_dir"):
        RunFolder.open(make_run_config(tmp_path / "file")).__enter__()


def test_a_command_that_is_repeated_begins_a_run_and_then_goes_on_with_it(tmp_path: Path) -> None:
    with RunFolder.open(make_run_config(tmp_path / "run"), resume=None) as run:
        assert run.newest is None
    with RunFolder.open(make_run_config(tmp_path / "run", seed=2), resume=None) as run:  # no results yet: begun again
        assert load_config(run.config_file).seed == 2
    config = make_run_config(write_run(make_run_config(tmp_path / "run"), 9))
    save_empty_checkpoint(RunFolder(config.run_dir), 5)
    with RunFolder.open(config, resume=None) as run:
        assert run.newest is not None and run.newest.step == 5
        assert list(run.rollouts_files("train")) == [1, 2, 3, 4, 5]
    with pytest.raises(RunFolderError, match=r"another configuration\n  - seed: was 0, now 2"):
        RunFolder.open(make_run_config(tmp_path / "run", seed=2), resume=None).__enter__()


def test_resuming_with_another_configuration_names_the_keys(tmp_path: Path) -> None:
    write_run(make_run_config(tmp_path / "run"), 2)
    changed = make_run_config(
        tmp_path / "run", seed=2, train={"num_steps": 10, "group_size": 4}, environments={STORE: {}}
    )
    with pytest.raises(RunFolderError) as caught:
        RunFolder.open(changed, resume=True).__enter__()
    message = str(caught.value)
    assert "seed: was 0, now 2" in message
    assert "train.group_size: was 8, now 4" in message
    assert f"environments.{ARITHMETIC}.weight: was 1.0, now not there" in message
    assert f"environments.{STORE}.weight: was 2.0, now 1.0" in message
    assert "num_steps" not in message and "choose another run_dir" in message


@pytest.mark.parametrize(
    ("order", "was", "now"),
    [
        ({ARITHMETIC: {}, STORE: {}}, f"environments (order): was ['{ARITHMETIC}', '{STORE}']", f"now ['{STORE}', "),
        (
            {ARITHMETIC: {"budget": {"unlimited": 1, "8": 2, "off": 1}}},
            f"environments.{ARITHMETIC}.budget (order): was ['unlimited', '8', 'off']",
            "now ['off', '8', 'unlimited']",
        ),
    ],
)
def test_an_order_that_decides_which_tasks_are_drawn_may_not_change(
    order: dict[str, Any], was: str, now: str, tmp_path: Path
) -> None:
    def backwards(tree: Any) -> Any:
        return {key: backwards(tree[key]) for key in reversed(tree)} if isinstance(tree, dict) else tree

    saved, given = (make_config(tmp_path / "run", environments=one) for one in (order, backwards(order)))
    drawn = [TaskStream(config.environments, 0, 2) for config in (saved, given)]
    assert any(drawn[0].task(ordinal) != drawn[1].task(ordinal) for ordinal in range(20))
    (line,) = recomputed(saved, given)
    assert line.startswith(was) and now in line
    assert differences(saved, given, None) == [f"{line}; other tasks would be drawn"]
    write_run(saved, 2)
    with pytest.raises(RunFolderError, match=re.escape(was)):
        RunFolder.open(given, resume=True).__enter__()
    with RunFolder.open(saved, resume=True):
        assert differences(load_config(tmp_path / "run" / "config.yaml"), saved, None) == []


def test_an_order_that_decides_nothing_may_change_and_other_names_are_told_once(tmp_path: Path) -> None:
    options = [{"level": 2, "kind": "a"}, {"kind": "a", "level": 2}]
    saved, given = (make_config(environments={ARITHMETIC: {"options": one}}) for one in options)
    assert differences(saved, given, None) == recomputed(saved, given) == []
    more = make_config(environments={STORE: {}, ARITHMETIC: {"options": options[0]}})
    assert not any("order" in line for line in differences(saved, more, None))


def test_resuming_may_change_how_far_and_where_it_runs(tmp_path: Path) -> None:
    write_run(make_run_config(tmp_path / "run"), 2)
    (tmp_path / "run").rename(tmp_path / "moved")
    sections = {
        "train": {"num_steps": 20, "collect_timeout_s": 5, "checkpoint_every": 3},
        "ray": {"address": "local"},
        "evaluation": {"every": 5},
        "canaries": {"mismatch": {"warn": 1.5}},
    }
    with RunFolder.open(make_run_config(tmp_path / "moved", **sections), resume=True) as run:
        assert load_config(run.config_file).train.num_steps == 20


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_number_of_steps_may_change_under_a_constant_learning_rate_only(schedule: str, tmp_path: Path) -> None:
    config = make_run_config(tmp_path / "run", learner={"schedule": schedule})
    write_run(config, 2)
    with pytest.raises(RunFolderError) as caught:
        RunFolder.open(
            make_run_config(tmp_path / "run", **LONGER, learner={"schedule": schedule}), resume=True
        ).__enter__()
    assert f"train.num_steps: was 10, now 20; the learning rate falls to 0 at the last step ({schedule}" in str(
        caught.value
    )
    with RunFolder.open(config, resume=True):
        pass


LONGER = {"train": {"num_steps": 20}}


def write_policy(folder: Path, tokenizer: str = "a tokenizer") -> None:
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text(tokenizer)


def test_the_policy_s_folder_may_move_once_the_checkpoint_holds_the_policy(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    moved = make_run_config(tmp_path / "run", policy={"path": str(tmp_path / "moved")})
    write_run(make_run_config(tmp_path / "run"), 2)
    write_policy(tmp_path / "moved")
    with pytest.raises(RunFolderError, match=r"policy\.path: was 'models/none', now"):
        RunFolder.open(moved, resume=True).__enter__()

    def write_learner(folder: Path) -> dict[str, WrittenFile]:
        write_policy(folder / "model")
        return sync_and_hash(folder, files_in(folder))

    save_checkpoint(tmp_path / "run" / "checkpoints", 2, write_learner, {})
    with caplog.at_level(logging.WARNING), RunFolder.open(moved, resume=True) as run:
        assert load_config(run.config_file).policy.path == tmp_path / "moved"
    assert "policy.path was models/none and is" in caplog.text
    write_policy(tmp_path / "other", "another tokenizer")
    other = make_run_config(tmp_path / "run", policy={"path": str(tmp_path / "other")})
    with pytest.raises(RunFolderError, match="its tokenizer is not the one that the checkpoint was trained with"):
        RunFolder.open(other, resume=True).__enter__()


def test_the_checkpoint_that_was_verified_is_the_one_to_go_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_run_config(write_run(make_run_config(tmp_path / "run"), 2))
    with RunFolder.open(config, resume=True) as run:
        assert run.newest is None
    save_empty_checkpoint(run, 2)
    with RunFolder.open(config, resume=True) as run:
        assert run.newest is not None and run.newest.step == 2


@pytest.mark.parametrize(
    ("lost", "words"), [((3,), "lacks step 3 of"), ((2, 3, 4, 6), "lacks steps 2 to 4, 6 of"), ((8, 9), "steps 8 to 9")]
)
def test_steps_that_a_power_cut_took_are_noticed_on_resuming(
    lost: tuple[int, ...], words: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_run_config(write_run(make_run_config(tmp_path / "run"), 9))
    save_empty_checkpoint(RunFolder(config.run_dir), 9)
    lines = [line for line in read_lines(config.run_dir / "metrics.jsonl") if line["step"] not in lost]
    (config.run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with caplog.at_level(logging.WARNING), RunFolder.open(config, resume=True):
        pass
    assert words in caplog.text and "the 9 steps in the checkpoint" in caplog.text
    caplog.clear()
    write_run(make_run_config(tmp_path / "whole"), 9)
    save_empty_checkpoint(RunFolder(tmp_path / "whole"), 9)
    with caplog.at_level(logging.WARNING), RunFolder.open(make_run_config(tmp_path / "whole"), resume=True):
        assert caplog.text == ""


def test_an_evaluation_that_was_ended_before_its_rollouts_were_saved_is_made_again(tmp_path: Path) -> None:
    config = make_run_config(write_run(make_run_config(tmp_path / "run", train={"num_steps": 40}), 20))
    run = RunFolder(config.run_dir)
    save_empty_checkpoint(run, 20)
    for path in run.rollouts_files("evaluation").values():  # those of step 0 were removed later, to free space
        path.unlink()
    config = make_run_config(tmp_path / "run", train={"num_steps": 20})
    with RunFolder.open(config, resume=True) as run, Tracker(run, config) as tracker:
        assert tracker.has_evaluation("before", 0)
        assert not tracker.has_evaluation("after", 20)


STRAYS = ("train_old.jsonl", "train_.jsonl", "train_000002.jsonl.bak", "train_2.jsonl", ".train_000002.jsonl.swp", "x")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_whatever_else_lies_in_a_run_folder_ends_nothing(kind: str, tmp_path: Path) -> None:
    config = make_run_config(write_run(make_run_config(tmp_path / "run", train={"num_steps": 3}), 3))
    save_empty_checkpoint(RunFolder(config.run_dir), 2)
    places = [config.run_dir / "rollouts" / name for name in (*STRAYS, "evaluation_first.jsonl")]
    places += [config.run_dir / name for name in (".nfs0001", "notes.txt", "metrics.jsonl~")]
    places += [config.run_dir / "checkpoints" / name for name in ("step_000002.bak", ".nfs0001")]
    for place in places:
        place.mkdir() if kind == "folder" else place.write_text("mine")
    (config.run_dir / "rollouts" / "train_000009.jsonl").mkdir()
    assert list(RunFolder(config.run_dir).rollouts_files("train")) == [1, 2, 3]
    assert write_report(config.run_dir).is_file()
    assert inspected(config.run_dir)
    with RunFolder.open(config, resume=True) as run, Tracker(run, config) as tracker:
        tracker.track(3, {"reward": 0.5})
    assert all(place.exists() for place in places)


@pytest.mark.parametrize("text", ["", "[{", "{}", "[1]", "\0\0"])
def test_a_damaged_file_of_versions_is_told_with_its_path(text: str, tmp_path: Path) -> None:
    config = make_run_config(write_run(make_run_config(tmp_path / "run"), 2))
    (config.run_dir / "versions.json").write_text(text)
    for use in (lambda: write_report(config.run_dir), lambda: RunFolder.open(config, resume=True).__enter__()):
        with pytest.raises(VersionsError, match=r"versions.json is damaged: (?s:.*)fix: move it away"):
            use()


@pytest.mark.parametrize(
    ("run_dir", "words"),
    [
        ("/proc/run", "cannot be written"),
        ("/dev/null/run", "a part of the path is a file"),
        ("/tmp/" + "x" * 300, "File name too long"),
    ],
)
def test_a_run_folder_that_cannot_be_made_is_told(run_dir: str, words: str) -> None:
    with pytest.raises(StorageError) as caught:
        RunFolder.open(make_run_config(Path(run_dir))).__enter__()
    assert words in str(caught.value) and "fix: " in str(caught.value)


def test_a_run_folder_that_is_a_link_to_nothing_is_told(tmp_path: Path) -> None:
    (tmp_path / "run").symlink_to(tmp_path / "nowhere")
    with pytest.raises(StorageError, match="link to nothing"):
        RunFolder.open(make_run_config(tmp_path / "run")).__enter__()


def test_resuming_drops_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    config = make_run_config(tmp_path / "run", train={"num_steps": 5})
    write_run(config, 5)
    save_empty_checkpoint(RunFolder(config.run_dir), 3)
    with (config.run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')  # the kill tore this line
    with RunFolder.open(config, resume=True) as run, Tracker(run, config) as tracker:
        lines = list(read_lines(run.metrics_file))
        assert [line["step"] for line in lines] == [0, 1, 2, 3]
        assert list(run.rollouts_files("train")) == [1, 2, 3]
        assert list(run.rollouts_files("evaluation")) == [0]
        assert tracker.has_evaluation("before", 0) and not tracker.has_evaluation("after", 5)
        tracker.track(4, {"reward": 0.5})
    assert [line["step"] for line in read_lines(run.metrics_file)] == [0, 1, 2, 3, 4]


def test_resuming_without_a_checkpoint_keeps_the_evaluation_before(tmp_path: Path) -> None:
    config = make_run_config(write_run(make_run_config(tmp_path / "run"), 2))
    with RunFolder.open(config, resume=True) as run:
        assert [(line["kind"], line["step"]) for line in read_lines(run.metrics_file)] == [("evaluation", 0)]
        assert list(run.rollouts_files("train")) == []


@pytest.mark.parametrize(("num_steps", "kept"), [(5, True), (9, False)])
def test_the_last_evaluation_stays_only_while_it_is_the_last(num_steps: int, kept: bool, tmp_path: Path) -> None:
    write_run(make_run_config(tmp_path / "run", train={"num_steps": 5}), 5)
    save_empty_checkpoint(RunFolder(tmp_path / "run"), 5)
    config = make_run_config(tmp_path / "run", train={"num_steps": num_steps})
    with RunFolder.open(config, resume=True) as run, Tracker(run, config) as tracker:
        assert tracker.has_evaluation("after", 5) is kept
        assert (5 in run.rollouts_files("evaluation")) is kept


def test_a_run_that_is_being_written_is_locked(tmp_path: Path) -> None:
    config = make_run_config(tmp_path / "run")
    with RunFolder.open(config), pytest.raises(RunFolderError, match=r"is being written by process \d+ on"):
        RunFolder.open(config).__enter__()
    with RunFolder.open(config):
        pass


def _hold(run_dir: Path, is_open: Event, may_end: Event) -> None:
    with RunFolder.open(make_run_config(run_dir)):
        is_open.set()
        may_end.wait(30)


def test_another_process_holds_the_lock_until_it_dies(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    is_open, may_end = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(tmp_path / "run", is_open, may_end))
    process.start()
    assert is_open.wait(30)
    with pytest.raises(RunFolderError, match=f"process {process.pid} on"):
        RunFolder.open(make_run_config(tmp_path / "run")).__enter__()
    process.kill()
    process.join()
    with RunFolder.open(make_run_config(tmp_path / "run")):
        pass


def inspected(run_dir: Path) -> bool:
    return show_rollouts(run_dir, num=1, console=Console(file=io.StringIO())) == 1
