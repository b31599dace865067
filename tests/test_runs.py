"""The run folder, what is tracked into it, and what the terminal shows of it."""

import dataclasses
import io
import logging
import sys
from pathlib import Path

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from envs.json_lines import JsonLineError, read_lines
from envs.rollout_file import array_from, read_rollouts
from rl.data_types import Outcome, Rollout
from rl.runs.display import Display, moving_mean, sparkline, step_line
from rl.runs.files import StorageError, append_line
from rl.runs.folder import RunFolder
from rl.runs.inspect import NothingToShowError, show_rollouts
from rl.runs.report import write_report
from rl.runs.saved_rollouts import load_rollouts
from rl.runs.tracker import Tracker
from rl.runs.tracking import step_metrics
from tests.makers import (
    ARITHMETIC,
    STORE,
    group_of,
    make_rollout,
    make_run_config,
    make_task,
    make_turn,
    make_update,
    save_empty_checkpoint,
    write_run,
)


def test_rollouts_of_every_third_step_are_saved_when_asked(tmp_path: Path) -> None:
    config = make_run_config(tmp_path / "run", train={"num_steps": 8, "save_rollouts_every": 3})
    write_run(config, 8)
    assert list(RunFolder(config.run_dir).rollouts_files("train")) == [3, 6]
    assert list(RunFolder(config.run_dir).rollouts_files("evaluation")) == [0, 8]
    assert write_report(config.run_dir).is_file()


def test_rollouts_that_cannot_be_saved_are_told(tmp_path: Path) -> None:
    config = make_run_config(tmp_path / "run")
    with RunFolder.open(config) as run, Tracker(run, config) as tracker:
        (run.rollouts / ".train_000001.jsonl.tmp").symlink_to("/dev/full")
        with pytest.raises(StorageError, match=r"train_000001.jsonl cannot be written: No space left on device"):
            tracker.save_rollouts(1, "train", [group_of(make_rollout(1.0))])
        assert list(run.rollouts.iterdir()) == []


def test_only_the_newest_rollouts_of_training_are_kept_when_asked(tmp_path: Path) -> None:
    config = make_run_config(tmp_path / "run", train={"num_steps": 8, "save_rollouts_every": 2, "keep_rollouts": 2})
    write_run(config, 8)
    assert list(RunFolder(config.run_dir).rollouts_files("train")) == [6, 8]
    assert list(RunFolder(config.run_dir).rollouts_files("evaluation")) == [0, 8]


def test_lines_survive_numbers_that_json_does_not_have(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    with path.open("w") as file:
        append_line(file, {"a": float("nan"), "b": [1.0, float("inf")], "c": {"d": 2}})
    assert list(read_lines(path)) == [{"a": None, "b": [1.0, None], "c": {"d": 2}}]


def test_a_torn_last_line_is_left_out_and_a_torn_middle_line_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"a": 1}\n{"a": ')
    assert list(read_lines(path)) == [{"a": 1}]
    path.write_text('{"a": 1}\n{"a": \n{"a": 3}\n')
    with pytest.raises(JsonLineError, match=r"lines.jsonl, line 2 is not JSON"):
        list(read_lines(path))


def test_tensorboard_says_what_the_metrics_say_also_after_resuming(tmp_path: Path) -> None:
    config = make_run_config(tmp_path / "run", train={"num_steps": 5})
    write_run(config, 5)
    save_empty_checkpoint(RunFolder(config.run_dir), 3)
    with RunFolder.open(config, resume=True) as run, Tracker(run, config) as tracker:
        tracker.track(4, {f"reward/{ARITHMETIC}": 0.125})
    events = EventAccumulator(str(run.path / "tensorboard"), size_guidance={"tensors": 0})
    events.Reload()
    tensors = events.Tensors(f"reward/{ARITHMETIC}")
    assert [event.step for event in tensors] == [1, 2, 3, 4]
    assert tensors[-1].tensor_proto.float_val[0] == 0.125
    assert f"evaluation/reward/{ARITHMETIC}" in events.Tags()["tensors"]


def test_saved_rollouts_hold_every_field(tmp_path: Path) -> None:
    rollout = make_rollout(0.5, task=make_task(level=1), turns=(make_turn(version=4, forced={2}),))
    config = make_run_config(tmp_path / "run")
    with RunFolder.open(config) as run, Tracker(run, config) as tracker:
        groups = [group_of(rollout, make_rollout(None, "env_error", member=1)), group_of(make_rollout(0.0, member=2))]
        tracker.save_rollouts(7, "train", groups)
    saved = list(read_rollouts(run.rollouts_file(7, "train")))
    assert [(line["step"], line["kind"], line["member"]) for line in saved] == [(7, "train", m) for m in range(3)]
    assert {field.name for field in dataclasses.fields(Rollout)} <= set(saved[0])
    assert saved[0]["task"] == {
        "ordinal": 0,
        "env_id": ARITHMETIC,
        "seed": 7,
        "split": "train",
        "budget": "unlimited",
        "options": {"level": 1},
    }
    (turn,) = saved[0]["turns"]
    reply = {name: array_from(array).tolist() for name, array in turn["reply"].items()}
    assert array_from(turn["prompt"]["ids"]).tolist() == [1, 2]
    assert reply == {
        "ids": [10, 11, 12],
        "sampled": [True, True, False],
        "logprob": [-0.5, -0.75, -1.0],
        "version": [4, 4, 4],
    }
    assert (turn["finish"], turn["is_start"]) == ("stop", True)
    assert next(load_rollouts(run.rollouts_file(7, "train"))) == rollout
    assert saved[0]["messages"][1]["tool_calls"] == [{"name": "look_up", "arguments": {"item": "2 + 2"}}]
    assert saved[1]["reward"] is None and saved[1]["error"] == "TimeoutError: reset"


def test_step_metrics_are_what_a_hand_counts() -> None:
    arithmetic = group_of(
        make_rollout(1.0, turns=(make_turn(reply_ids=range(4), version=2),)),
        make_rollout(
            0.0,
            "truncated",
            turns=(make_turn(reply_ids=range(6), version=1, forced={4, 5}), make_turn(reply_ids=range(2), version=3)),
        ),
        make_rollout(None, "env_timeout", turns=(make_turn(reply_ids=range(5), version=0),)),
    )
    store = group_of(
        make_rollout(0.5, env_id=STORE, malformed_calls={"form": 2, "unclosed": 1}),
        make_rollout(0.5, env_id=STORE, reward_parts={"correct": 1.0, "format": 0.25}),
    )
    metrics = step_metrics(
        [arithmetic, store], make_update(4), {"collect": 3.0, "update": 2.0}, {"engines": 0.5, "both": 0.1}
    )
    expected = {
        "reward": 0.5,
        f"reward/{ARITHMETIC}": 0.5,
        f"reward/{STORE}": 0.5,
        f"reward_part/{STORE}/correct": 0.75,
        f"reward_part/{STORE}/format": 0.25,
        "outcome/ok": 3,
        "outcome/truncated": 1,
        "outcome/env_timeout": 1,
        "outcome/stale": 0,
        f"outcome/{ARITHMETIC}/env_timeout": 1,
        f"outcome/{STORE}/env_timeout": 0,
        "masked_rows": 0.2,
        "degenerate_groups": 1,
        f"degenerate_groups/{STORE}": 1,
        f"degenerate_groups/{ARITHMETIC}": 0,
        f"reply_tokens/{ARITHMETIC}": 6.0,  # (4 + 8) / 2
        f"reply_tokens_max/{ARITHMETIC}": 8,
        f"turns/{ARITHMETIC}": 1.5,
        f"malformed_calls/{STORE}": 1.5,
        # trained at version 3: ages 1 (4 tokens), 2 (4, forced ones left out), 0 (2), 3 (6)
        "staleness": (4 * 1 + 4 * 2 + 2 * 0 + 6 * 3) / 16,
        "staleness_max": 3,
        "staleness_share/0": 2 / 16,
        "staleness_share/3": 6 / 16,
        # sampled: 4 + 4 + 2 + 5 + 3 + 3 = 21, those of the masked rollout included
        "tokens_per_s/sampled": 7.0,
        "tokens_per_s/trained": 25.0,
        "tokens_per_s/step": 4.2,
        "seconds": 5.0,
        "seconds/update": 2.0,
        "share/collect": 0.6,
        "update/entropy": 1.2,
        "update/policy_version": 4,
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    assert sum(metrics[f"outcome/{outcome}"] for outcome in Outcome) == 5


def test_malformed_calls_are_counted_by_kind() -> None:
    group = group_of(
        make_rollout(0.5, malformed_calls={"form": 2, "unclosed": 1}),
        make_rollout(0.5, malformed_calls={"form": 1}),
        make_rollout(None, "env_error", malformed_calls={"form": 9}),
    )
    metrics = step_metrics([group], make_update(), {}, {})
    found = {name: value for name, value in metrics.items() if name.startswith("malformed_calls/")}
    name = f"malformed_calls/{ARITHMETIC}"
    assert found == {name: 2.0, f"{name}/form": 1.5, f"{name}/unclosed": 0.5}


def test_a_step_in_which_nothing_counts_has_no_reward() -> None:
    group = group_of(make_rollout(None, "infra_error", turns=()), make_rollout(None, "infra_error", turns=()))
    metrics = step_metrics([group], make_update(), {}, {})
    assert "reward" not in metrics and f"reward/{ARITHMETIC}" not in metrics and "staleness" not in metrics
    assert (metrics["masked_rows"], metrics["degenerate_groups"]) == (1.0, 1)


def test_sparklines_and_means_of_hand_sized_values() -> None:
    assert sparkline([0.0, 0.5, 1.0], 10) == "▁▅█"
    assert sparkline([5, 0.0, 1.0], 2) == "▁█"
    assert sparkline([1.0, 1.0], 10) == "▁▁"
    assert sparkline([], 10) == ""
    assert moving_mean([100.0, *[1.0] * 10, *[3.0] * 10]) == 2.0


def show(console: Console) -> None:
    groups = [group_of(make_rollout(1.0), make_rollout(None, "env_error"))]
    config = make_run_config(Path("runs/[bold]x"))
    with Display(config, console) as display:
        display.stage("training")
        display.phase("collect")
        display.step(1, step_metrics(groups, make_update(), {"collect": 3.0, "update": 1.0}, {"engines": 0.75}))
        display.evaluation("before", {f"reward/{ARITHMETIC}": 0.25})
        display.message("step 1: mismatch [1.2] is high")


def test_without_a_terminal_each_step_is_one_line() -> None:
    out = io.StringIO()
    show(Console(file=out, width=40))
    lines = out.getvalue().splitlines()
    assert len(lines) == 5
    assert lines[0] == "training"
    assert lines.pop(1).startswith("mismatch is 1 if")  # once, before the first step
    assert lines[1].startswith(f"step 1/10  reward 1.000 ({ARITHMETIC} 1.000)  2 sampled tok/s  25 trained tok/s")
    assert "mismatch 1.0010" in lines[1] and "outcomes ok 1 env_error 1" in lines[1]
    assert lines[2:] == [f"evaluation before: reward {ARITHMETIC} 0.250", "step 1: mismatch [1.2] is high"]


def test_a_terminal_shows_the_panel() -> None:
    out = io.StringIO()
    show(Console(file=out, width=110, force_terminal=True, legacy_windows=False, _environ={"TERM": "xterm"}))
    text = out.getvalue()
    for expected in (
        "training: collect",
        ARITHMETIC,
        STORE,
        "collect 75%",
        "mismatch 1.0010",
        "mismatch [1.2] is high",
    ):
        assert expected in text


@pytest.mark.parametrize("term", ["dumb", "unknown"])
def test_a_terminal_that_cannot_move_its_cursor_shows_lines(term: str) -> None:
    out, plain = io.StringIO(), io.StringIO()
    show(Console(file=out, width=40, force_terminal=True, _environ={"TERM": term}))
    show(Console(file=plain, width=40))
    assert out.getvalue() == plain.getvalue()


def test_the_panel_says_which_time_is_which() -> None:
    out = io.StringIO()
    show(Console(file=out, width=110, force_terminal=True, legacy_windows=False, _environ={"TERM": "xterm"}))
    line = next(line for line in out.getvalue().splitlines() if "elapsed" in line)
    assert line.index("elapsed") < line.index("left")


def test_what_libraries_log_and_warn_about_appears_above_the_panel(capsys: pytest.CaptureFixture[str]) -> None:
    out, library = io.StringIO(), logging.getLogger("a.library")
    handler = logging.StreamHandler()  # made before the display, as transformers and Ray make theirs
    library.addHandler(handler)
    try:
        terminal = Console(file=out, width=110, force_terminal=True, _environ={"TERM": "xterm"})
        with Display(make_run_config(Path("runs/x")), terminal):
            library.warning("of a library")
            print("from somewhere", file=sys.stderr)
            logging.getLogger("another").warning("without a handler")
        assert "of a library" in out.getvalue() and "from somewhere" in out.getvalue()
        assert capsys.readouterr().err == ""
        library.warning("afterwards")
        assert capsys.readouterr().err == "afterwards\n"
    finally:
        library.removeHandler(handler)


def test_a_step_without_a_reward_is_not_shown_as_nan() -> None:
    line = step_line(3, make_run_config(Path("runs/x")), {"outcome/env_error": 2, "seconds": 1.5})
    assert line == "step 3/10  reward unknown: no rollout counted  outcomes env_error 2  1.5 s"


def inspected(run_dir: Path, **asked: object) -> str:
    out = io.StringIO()
    show_rollouts(run_dir, console=Console(file=out, width=120, highlight=False), **asked)  # pyright: ignore[reportArgumentType]
    return out.getvalue()


def test_rollouts_are_shown_with_everything_a_reader_asks(tmp_path: Path) -> None:
    run_dir = write_run(make_run_config(tmp_path / "run"), 3)
    text = inspected(run_dir, env_id=STORE, min_reward=1.0, num=1)
    expected = ("step 3", STORE, "What is <b>2 + 2</b>?", "I look it up.", "-> look_up(item='2 + 2')", "tool look_up")
    for part in (
        *expected,
        "reward 1.000  correct 1",
        "outcome ",
        "policy version 2",
        "tokens (new in the prompt>reply) 2>",
        "attempts 1",
    ):
        assert part in text
    assert inspected(run_dir, step=2, num=3).count("step 2") == 3
    assert "heldout seed 9" in inspected(run_dir, kind="evaluation")


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"env_id": "x/Y-v0"}, f"no saved train rollout matches; there are: {ARITHMETIC} ok: "),
        ({"step": 9}, "step 9 has no saved train rollouts; steps: 1 to 2"),
        ({"outcome": "okay"}, "outcome 'okay' is not one of ok, truncated"),
        ({"kind": "test"}, "not one of train, evaluation"),
        ({"min_reward": 2.0}, " with rewards 0 to 1"),
    ],
)
def test_asking_for_rollouts_that_are_not_there_says_what_there_is(
    asked: dict[str, object], expected: str, tmp_path: Path
) -> None:
    run_dir = write_run(make_run_config(tmp_path / "run"), 2)
    with pytest.raises(NothingToShowError) as caught:
        inspected(run_dir, **asked)
    assert expected in str(caught.value)
    with pytest.raises(NothingToShowError, match="is it a run folder"):
        inspected(tmp_path / "nothing")
