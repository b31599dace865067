"""Runs side by side: the keys that differ, scores with their errors, and speed."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rl.runs.budget_curves import budget_curves, budget_rows
from rl.runs.compare import configuration_differences, print_comparison, results
from rl.runs.history import read_history
from tests.makers import ARITHMETIC, make_run_config, write_run


def two_runs(folder: Path) -> list[Path]:
    """The second with another seed and learning rate, and a held-out reward of 0.9 ± 0.04 in place of 0.8 ± 0.03."""
    first = write_run(make_run_config(folder / "first"), 3)
    second = write_run(make_run_config(folder / "second", seed=1, learner={"learning_rate": 1e-5}), 3)
    lines = [json.loads(line) for line in (second / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line.get("label") == "after":
            line |= {f"reward/{ARITHMETIC}": 0.9, f"stderr/{ARITHMETIC}": 0.04}
    (second / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return [first, second]


def test_only_keys_that_differ_are_listed(tmp_path: Path) -> None:
    histories = [read_history(run) for run in two_runs(tmp_path)]
    differences = {row[0]: row[1:] for row in configuration_differences(histories)}
    assert differences.keys() == {"learner.learning_rate", "seed"}
    assert differences["seed"] == ["0", "1"]
    assert differences["learner.learning_rate"] == ["0.0002", "1e-05"]


def test_scores_have_their_errors_and_the_lead_of_the_second(tmp_path: Path) -> None:
    runs = two_runs(tmp_path)
    rows = {row[0]: row[1:] for row in results([read_history(run) for run in runs])}
    assert rows[f"{ARITHMETIC} before"] == ["0.200 ± 0.030", "0.200 ± 0.030", "+0.000 ± 0.042"]
    assert rows[f"{ARITHMETIC} after"] == ["0.800 ± 0.030", "0.900 ± 0.040", "+0.100 ± 0.050"]  # 3, 4, 5
    assert rows["steps"] == ["3", "3"]
    three = {row[0]: row[1:] for row in results([read_history(run) for run in [*runs, runs[0]]])}
    assert three[f"{ARITHMETIC} after"] == ["0.800 ± 0.030", "0.900 ± 0.040", "0.800 ± 0.030"]


def test_what_was_not_measured_is_a_dash(tmp_path: Path) -> None:
    first, second = two_runs(tmp_path)
    (second / "metrics.jsonl").write_text("")
    rows = {row[0]: row[1:] for row in results([read_history(first), read_history(second)])}
    assert rows[f"{ARITHMETIC} after"] == ["0.800 ± 0.030", "-"]
    assert rows["seconds a step"][1] == "-"


def test_the_comparison_is_printed_and_written_as_a_page(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    console = Console(record=True, width=140, file=io.StringIO())
    print_comparison(two_runs(tmp_path), page, console=console)
    text = page.read_text()
    assert all(word in text for word in ("first", "second", "learner.learning_rate", "difference", "+0.100 ± 0.050"))


def test_no_id_is_broken_apart_in_a_narrow_terminal(tmp_path: Path) -> None:
    runs = [run.rename(run.with_name(f"{run.name}_of_the_long_runs_with_a_long_name")) for run in two_runs(tmp_path)]
    for width in (60, 80, 200):
        out = io.StringIO()
        print_comparison(runs, console=Console(width=width, file=out))
        text = out.getvalue()
        assert all(
            word in text for word in ("learner.learning_rate", f"{ARITHMETIC} after", *(run.name for run in runs))
        )
        assert ("┃" in text) == (width == 200)
    assert "mismatch: how far the learner's" in text


def evaluated(run: Path, points: dict[str, tuple[float, float, float]]) -> Path:
    """Writes what `rl evaluate --budgets` writes: accuracy, its error and mean tokens by budget."""
    names = [f"{name}/{ARITHMETIC}" for name in ("accuracy", "accuracy_stderr", "reply_tokens", "num")]
    lines = {budget: dict(zip(names, (*values, 25), strict=True)) for budget, values in points.items()}
    (run / "evaluation.json").write_text(json.dumps({"policy": "x", "budgets": lines}))
    return run


def test_budgets_of_several_runs_are_compared_by_the_tokens_that_were_used(tmp_path: Path) -> None:
    first, second = two_runs(tmp_path)
    evaluated(first, {"off": (0.2, 0.12, 10.0), "64": (0.5, 0.15, 52.25)})
    evaluated(second, {"64": (0.8, 0.08, 40.0), "unlimited": (0.9, 0.06, 80.0)})
    histories = [read_history(run) for run in (first, second)]
    assert budget_rows(histories) == [
        [f"{ARITHMETIC}, budget off", "0.200 ± 0.120 at 10.0 tokens", "-"],
        [f"{ARITHMETIC}, budget 64", "0.500 ± 0.150 at 52.2 tokens", "0.800 ± 0.080 at 40.0 tokens"],
        [f"{ARITHMETIC}, budget unlimited", "-", "0.900 ± 0.060 at 80.0 tokens"],
    ]
    figure = budget_curves(histories, ["first", "second"])
    assert figure is not None
    drawn: list[Any] = figure.axes[0].containers
    curves = {one.get_label(): one.lines[0].get_xydata() for one in drawn}
    assert curves["first"].tolist() == [[10.0, 0.2], [52.25, 0.5]]
    assert curves["second"].tolist() == [[40.0, 0.8], [80.0, 0.9]]
    bars = {one.get_label(): one.lines[2][0].get_segments() for one in drawn}
    assert bars["first"][0][:, 1].tolist() == pytest.approx([0.08, 0.32])
    page = tmp_path / "page.html"
    print_comparison([first, second], page, console=Console(record=True, width=140, file=io.StringIO()))
    assert "data:image/png;base64," in page.read_text() and "0.800 ± 0.080 at 40.0 tokens" in page.read_text()


def test_runs_without_evaluations_by_budget_have_no_curves(tmp_path: Path) -> None:
    histories = [read_history(run) for run in two_runs(tmp_path)]
    assert budget_rows(histories) == [] and budget_curves(histories, ["first", "second"]) is None
