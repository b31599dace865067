"""Several seeds together: which runs have one setting, their mean and its error, a setting's lead over another."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from rl.runs.compare import NoSettingsError, print_comparison
from rl.runs.history import History, read_history
from rl.runs.settings import setting_rows, settings_figure, settings_of
from tests.makers import ARITHMETIC, make_run_config, write_run

REWARDS = {"plain_0": 0.5, "plain_1": 0.7, "curriculum_seed_0": 0.6, "curriculum_seed_1": 0.9, "alone": 0.4}


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    return [finished(tmp_path / name, reward) for name, reward in REWARDS.items()]


def finished(folder: Path, reward: float) -> Path:
    """A run of the seed that its name ends with, and with this held-out reward."""
    seed = int(folder.name[-1]) if folder.name[-1].isdigit() else 7
    run = write_run(make_run_config(folder, seed=seed), 2)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line.get("label") == "after":
            line |= {f"reward/{ARITHMETIC}": reward, "reward/mean": reward}
        if line.get("label") == "before":
            line |= {"reward/mean": 0.2}
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def histories(runs: list[Path]) -> list[History]:
    return [read_history(run) for run in runs]


def test_runs_named_alike_but_for_their_seed_are_one_arm(runs: list[Path]) -> None:
    settings = settings_of(histories(runs))
    assert {name: len(own) for name, own in settings.items()} == {"plain": 2, "curriculum": 2, "alone": 1}
    assert settings_of(histories([runs[0], runs[2], runs[4]])) == {}


def test_a_number_that_is_not_the_seed_stays_in_the_name(tmp_path: Path) -> None:
    two = [finished(tmp_path / name, 0.5) for name in ("bound_1_0", "bound_4_0", "bound_4_1")]
    assert {name: len(own) for name, own in settings_of(histories(two)).items()} == {"bound_1": 1, "bound_4": 2}
    lone = [finished(tmp_path / name, 0.5) for name in ("bound_1", "bound_2")]  # their seeds are 1 and 2
    assert list(settings_of(histories(lone))) == ["bound"]
    same = [finished(tmp_path / name, 0.5) for name in ("old/quick", "new/quick")]  # both have the seed 7
    assert settings_of(histories(same)) == {}
    assert {name: len(own) for name, own in settings_of(histories([*same, *two])).items()} == {
        **{"quick": 1, "new/quick": 1},
        **{"bound_1": 1, "bound_4": 2},
    }
    below = [finished(tmp_path / name, 0.5) for name in ("short/seed_0", "short/1", "long/seed_0")]
    assert {name: len(own) for name, own in settings_of(histories(below)).items()} == {"short": 2, "long": 1}


def test_rows_have_the_mean_over_seeds_its_error_and_the_lead_by_seed(runs: list[Path]) -> None:
    rows = {row[0]: row[1:] for row in setting_rows(settings_of(histories(runs)))}
    # (0.5 + 0.7) / 2, deviation 0.1414 / sqrt 2; (0.6 + 0.9) / 2, 0.2121 / sqrt 2; one run has no error
    expected = ["0.600 ± 0.100 (2)", "0.750 ± 0.150 (2)", "0.400 (1)"]
    assert rows[f"{ARITHMETIC} after"] == expected and rows["mean after"] == expected
    assert rows["mean before"] == ["0.200 ± 0.000 (2)", "0.200 ± 0.000 (2)", "0.200 (1)"]
    # 0.6 - 0.5 and 0.9 - 0.7; the run with seed 7 has no partner
    assert rows["mean after, less plain"] == ["", "+0.150 ± 0.050 (2)", "-"]


def test_the_figure_has_a_curve_and_the_seeds_of_each_arm(runs: list[Path]) -> None:
    left, right = settings_figure(settings_of(histories(runs))).axes
    assert [line.get_label() for line in left.lines] == ["plain", "curriculum", "alone"]
    assert [list(map(float, line.get_ydata())) for line in right.lines] == [[0.5, 0.7], [0.6, 0.9], [0.4]]  # type: ignore[call-overload]


def test_the_comparison_shows_arms_and_draws_them(runs: list[Path], tmp_path: Path) -> None:
    out, page, figure = io.StringIO(), tmp_path / "page.html", tmp_path / "settings.png"
    print_comparison(runs, page, figure, Console(record=True, width=180, file=out))
    assert "seeds of a setting together" in out.getvalue() and "+0.150 ± 0.050 (2)" in out.getvalue()
    assert figure.read_bytes().startswith(b"\x89PNG") and "data:image/png;base64," in page.read_text()


def test_a_figure_of_runs_that_are_no_arms_is_refused_before_anything_is_printed(
    runs: list[Path], tmp_path: Path
) -> None:
    out = io.StringIO()
    with pytest.raises(NoSettingsError, match="bound_1_0 and bound_1_1"):
        print_comparison([runs[0], runs[2]], figure=tmp_path / "settings.png", console=Console(file=out))
    assert not out.getvalue() and not (tmp_path / "settings.png").exists()
