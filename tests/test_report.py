"""The report: one page with nothing outside of it, from whatever the run folder holds."""

import json
import re
from pathlib import Path

import pytest

from rl.data_types import Outcome
from rl.runs.drawing import smoothed
from rl.runs.figures import FIGURES
from rl.runs.files import StorageError
from rl.runs.folder import RunFolder
from rl.runs.history import DamagedError, NoRunError, read_history
from rl.runs.report import canary_table, evaluation_table, outcome_table, sample_rollouts, summary, write_report
from rl.runs.tracker import Tracker
from tests.makers import ARITHMETIC, STORE, group_of, make_rollout, make_run_config, write_run


@pytest.mark.slow
def test_the_page_holds_everything_and_refers_to_nothing(tmp_path: Path) -> None:
    run_dir = write_run(make_run_config(tmp_path / "run", train={"num_steps": 25}), 25)
    (run_dir / "sft").mkdir()
    lines = [json.dumps({"step": step, "loss": 3 / step, "tokens_per_s": 4000.0}) for step in range(1, 30)]
    (run_dir / "sft" / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    line = {f"num/{ARITHMETIC}": 64, f"accuracy/{ARITHMETIC}": 0.5, f"reply_tokens/{ARITHMETIC}": 30.0}
    evaluation = {"policy": "x", "budgets": {"off": line, "32": line, "unlimited": line}}
    (run_dir / "evaluation.json").write_text(json.dumps(evaluation))
    page = write_report(run_dir).read_text()
    assert page.count("data:image/png;base64,") == len(FIGURES)
    assert {path.name for path in (run_dir / "figures").iterdir()} == {f"{name}.png" for name in FIGURES}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (run_dir / "figures").iterdir())
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert "What is &lt;b&gt;2 + 2&lt;/b&gt;?" in page and "<b>2 + 2" not in page
    for expected in (
        "0.200 ± 0.030",
        "0.800 ± 0.030",
        "64 / 64",
        "2 / 2",
        "num_steps: 25",
        "torch",
        "25 steps, 400 rollouts",
    ):
        assert expected in page
    assert "Nothing of this" not in page


@pytest.mark.parametrize("num_lines", [0, 1, 2])
def test_a_run_that_has_hardly_begun_is_reported(num_lines: int, tmp_path: Path) -> None:
    run_dir = write_run(make_run_config(tmp_path / "run"), 2)
    lines = (run_dir / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run_dir / "metrics.jsonl").write_text("".join(lines[:num_lines]))
    page = write_report(run_dir).read_text()
    assert "Nothing of this in the run folder." in page
    assert ("No training step has been written yet." in page) == (num_lines < 2)
    assert ("No evaluation after yet." in page) == (num_lines > 0)


def test_a_run_that_wrote_nothing_yet_is_reported(tmp_path: Path) -> None:
    with RunFolder.open(make_run_config(tmp_path / "run")) as run:
        page = write_report(run.path).read_text()
    assert page.count("Nothing of this in the run folder.") == len(FIGURES) + 5


@pytest.mark.parametrize("names", [(), ("notes.txt", "model/config.json"), ("config.yaml",), ("figures/x.png",)])
def test_a_folder_without_a_run_is_refused_and_left_as_it_is(names: tuple[str, ...], tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(NoRunError, match="holds no run"):
        write_report(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(NoRunError, match="there is no run folder"):
        write_report(tmp_path / "nothing")


def test_an_evaluation_alone_is_reported(tmp_path: Path) -> None:
    line = {f"num/{ARITHMETIC}": 64, f"accuracy/{ARITHMETIC}": 0.5, f"reply_tokens/{ARITHMETIC}": 30.0}
    (tmp_path / "evaluation.json").write_text(json.dumps({"policy": "x", "budgets": {"off": line, "32": line}}))
    assert "data:image/png" in write_report(tmp_path).read_text()
    assert (tmp_path / "figures" / "budgets.png").is_file()


@pytest.mark.parametrize("text", ["", '{"policy": ', "[]", "{}"])
def test_a_damaged_evaluation_is_told_with_its_file(text: str, tmp_path: Path) -> None:
    run_dir = write_run(make_run_config(tmp_path / "run"), 2)
    (run_dir / "evaluation.json").write_text(text)
    with pytest.raises(DamagedError, match=r"evaluation.json is damaged"):
        write_report(run_dir)


def test_a_report_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    run_dir = write_run(make_run_config(tmp_path / "run"), 2)
    (run_dir / "figures").write_text("a file")
    with pytest.raises(StorageError, match=r"figures cannot be written: File exists"):
        write_report(run_dir)


def test_figures_of_an_earlier_report_do_not_outlive_their_data(tmp_path: Path) -> None:
    run_dir = write_run(make_run_config(tmp_path / "run"), 2)
    write_report(run_dir)
    (run_dir / "metrics.jsonl").unlink()
    write_report(run_dir)
    assert list((run_dir / "figures").iterdir()) == []


def test_steps_without_numbers_are_left_out_of_figures(tmp_path: Path) -> None:
    config = make_run_config(tmp_path / "run")
    with RunFolder.open(config) as run, Tracker(run, config) as tracker:
        tracker.track(1, {f"outcome/{ARITHMETIC}/ok": 8, "outcome/ok": 8, "update/mismatch": float("nan")})
        tracker.track(2, {f"outcome/{ARITHMETIC}/ok": 8, "outcome/ok": 8, f"reward/{ARITHMETIC}": 0.5})
    history = read_history(config.run_dir)
    assert history.env_ids == [ARITHMETIC]
    assert history.series("update/mismatch") == ([], [])
    assert history.series(f"reward/{ARITHMETIC}") == ([2], [0.5])
    assert write_report(config.run_dir).is_file()


def test_samples_are_the_best_the_worst_and_a_random_rollout_of_each_environment(tmp_path: Path) -> None:
    config = make_run_config(tmp_path / "run")
    rollouts = [make_rollout(reward, member=number) for number, reward in enumerate((0.5, 1.0, 0.0))]
    masked = make_rollout(None, "env_error", env_id=STORE)
    with RunFolder.open(config) as run, Tracker(run, config) as tracker:
        tracker.save_rollouts(1, "train", [group_of(*rollouts), group_of(masked)])
    chosen = sample_rollouts(read_history(config.run_dir))
    assert {kind: chosen[ARITHMETIC][kind]["reward"] for kind in ("best", "worst")} == {"best": 1.0, "worst": 0.0}
    assert list(chosen[STORE]) == ["random"]
    assert sample_rollouts(read_history(config.run_dir)) == chosen


def test_tables_count_what_was_written(tmp_path: Path) -> None:
    config = make_run_config(tmp_path / "run")
    with RunFolder.open(config) as run, Tracker(run, config) as tracker:
        for step in (1, 2):
            metrics = {f"outcome/{ARITHMETIC}/{outcome}": 0 for outcome in Outcome}
            metrics |= {f"outcome/{ARITHMETIC}/ok": 3 * step, "outcome/ok": 3 * step}
            tracker.track(step, {**metrics, "seconds": 60.0, "tokens_per_s/step": 10.0})
    history = read_history(config.run_dir)
    assert f"<tr><td>{ARITHMETIC}</td><td>9</td><td>-</td>" in outcome_table(history)
    assert evaluation_table(history) == ""
    assert summary(history) == "2 steps, 9 rollouts and 1,200 sampled tokens in 2 min; 1 environment."


def test_the_table_of_canaries_has_the_newest_and_the_highest_value_and_what_was_said(tmp_path: Path) -> None:
    canaries = {"masked_rows": {"window": 1, "warn": 0.2, "mask": 0.75}}
    config = make_run_config(tmp_path / "run", canaries=canaries)
    with RunFolder.open(config) as run, Tracker(run, config) as tracker:
        for step, (value, level) in enumerate([(0.5, 1), (0.125, 0)], start=1):
            tracker.track(step, {"canary/masked_rows": value, "canary/masked_rows/level": level})
        tracker.note(1, "canary masked_rows: 50% of <them>")
        tracker.note(1, "worker 0: it is warm")
    table = canary_table(read_history(config.run_dir))
    row = ("masked_rows", "0.125", "0.5", "1", "0.2", "0.75", "-", "0.5", "ok")
    assert "<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" in table
    assert "<td>reward_fall</td><td>-</td><td>-</td><td>20</td>" in table
    assert "<pre>step 1: canary masked_rows: 50% of &lt;them&gt;</pre>" in table


def test_smoothing_is_a_trailing_mean_over_a_twentieth() -> None:
    assert smoothed([1.0, 3.0]) == [1.0, 3.0]
    assert smoothed([0.0] * 39 + [1.0])[-2:] == [0.0, 0.5]
