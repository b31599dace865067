"""The report over a chain: a row a stage, rewards before and after by environment, one figure, links to the runs."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from rl.runs.chain_folder import ChainFolder, ListedStage
from rl.runs.chain_report import reward_figure, stage_history, write_chain_report
from rl.runs.history import DamagedError, NoRunError
from tests.makers import ARITHMETIC, STORE, make_run_config, write_run
from tests.test_rl_commands import run

STAGES = (
    ListedStage("taught", "sft train", "", "sft"),
    ListedStage("practised", "rl train", "taught", "exported"),
    ListedStage("preferred", "sft dpo", "practised", "dpo"),
    ListedStage("again", "rl train", "preferred", "exported"),
    ListedStage("last", "rl train", "again", "exported"),
)


@pytest.fixture
def folder(tmp_path: Path) -> ChainFolder:
    """Four stages of which the last has not begun, and is of another run than the others."""
    made = ChainFolder(tmp_path / "chain")
    made.begin(STAGES)
    for name, result in (("taught", "sft"), ("preferred", "dpo")):
        (made.path / name / result).mkdir(parents=True)
        lines = [{"step": step, "loss": 1.0, "tokens": 500, "seconds": 1.0} for step in (1, 2, 3)]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (made.path / name / result / "metrics.jsonl").write_text(text)
    for name in ("practised", "again"):
        write_run(make_run_config(made.path / name), 25)
    for stage in STAGES[:4]:
        made.save(stage.name, 60.0, "seed: 0\n" if stage.name != "again" else None)
    made.save("taught", 30.0, None)
    return made


def test_the_page_has_each_stage_its_rewards_and_links(folder: ChainFolder) -> None:
    printed = io.StringIO()
    page = write_chain_report(folder.path, Console(file=printed, width=200)).read_text()
    rows = {line.split("</td>")[0].removeprefix("<tr><td>"): line for line in page.splitlines() if "<tr><td>" in line}
    cells = {
        name: row.removeprefix("<tr><td>").removesuffix("</td></tr>").split("</td><td>") for name, row in rows.items()
    }
    assert cells["taught"] == ["taught", "sft train", "-", "finished", "3", "-", "1,500", "90"]
    assert cells["preferred"] == ["preferred", "sft dpo", "practised", "finished", "3", "-", "1,500", "60"]
    assert cells["again"][:5] == ["again", "rl train", "preferred", "begun", "25"]
    assert cells["again"][5] == "400" and int(cells["again"][6].replace(",", "")) > 1000  # 25 steps of 2 groups of 8
    assert cells["last"] == ["last", "rl train", "again", "not begun", "-", "-", "-", "0"]
    assert cells[ARITHMETIC] == [ARITHMETIC, "again", "0.200 ± 0.030", "0.800 ± 0.030"]  # the last of its rows
    assert cells.keys() >= {ARITHMETIC, STORE}
    assert page.count(f"<tr><td>{ARITHMETIC}</td>") == 2 and f"<td>{ARITHMETIC}</td><td>practised</td>" in page
    assert '<a href="taught/report.html">taught</a>' in page and '"last/report.html"' not in page
    assert (folder.path / "taught" / "report.html").is_file()
    assert (folder.path / "figures" / "heldout_reward.png").stat().st_size > 10_000
    assert "practised" in printed.getvalue() and "0.800 ± 0.030" in printed.getvalue()


def test_lines_go_on_only_where_the_policy_did(folder: ChainFolder) -> None:
    """Dotted from practised to again, and not from again to a stage that starts from taught."""
    aside = [*STAGES[:4], ListedStage("last", "rl train", "taught", "exported")]
    write_run(make_run_config(folder.path / "last"), 25)
    folder.begin(aside)
    figure = reward_figure([stage_history(folder, stage) for stage in aside])
    assert figure is not None
    lines = [line for axes in figure.axes for line in axes.lines if line.get_linestyle() == ":"]
    dotted = [np.asarray(line.get_xdata()) for line in lines]
    assert [xs.round(3).tolist() for xs in dotted] == [[0.9, 1.1]] * 2  # of two environments


def test_the_command_writes_the_report_of_a_chain_too(
    folder: ChainFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "report", folder.path) == 0
    assert str(folder.report_file) in capsys.readouterr().out


def test_a_chain_without_evaluations_has_no_figure(tmp_path: Path) -> None:
    folder = ChainFolder(tmp_path)
    folder.begin(STAGES)
    assert "Nothing of this in the run folder" in write_chain_report(tmp_path, Console(file=io.StringIO())).read_text()
    assert reward_figure([]) is None


def test_damaged_and_missing_files_are_told(tmp_path: Path, folder: ChainFolder) -> None:
    with pytest.raises(NoRunError, match="holds no chain"):
        write_chain_report(tmp_path)
    (folder.path / "taught" / "stage.json").write_text("{")
    with pytest.raises(DamagedError, match=r"stage.json is damaged: .*; delete it"):
        write_chain_report(folder.path)
    folder.chain_file.write_text("{}")
    with pytest.raises(DamagedError, match=r"chain.json is damaged"):
        write_chain_report(folder.path)
