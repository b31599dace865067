"""Which options of `rl train` go together, and what is refused before anything starts."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from rl.__main__ import app

QUICKSTART = "experiments/quickstart.yaml"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "give an experiment YAML"),
        (("--replay", "runs/one", QUICKSTART), "takes the configuration of the run, and no YAML"),
        (("--replay", "runs/one", "--resume"), "--replay begins a run of its own; give it without --resume"),
        ((QUICKSTART, "--only-rollouts", "--resume-if-any"), "--only-rollouts begins a run of its own"),
        ((QUICKSTART, "--only-rollouts", "--rollouts-from", "runs/one"), "exclude each other"),
        ((QUICKSTART, "--resume", "--resume-if-any"), "give one of them"),
    ],
)
def test_options_that_do_not_go_together_are_refused(arguments: tuple[str, ...], told: str) -> None:
    done = CliRunner().invoke(app, ["train", *arguments], terminal_width=200, env={"TERM": "dumb", "COLUMNS": "200"})
    assert done.exit_code == 2
    assert told in done.output


@pytest.mark.parametrize("arguments", [("--replay", "{}"), (QUICKSTART, "--rollouts-from", "{}", "run_dir={}/new")])
def test_a_run_without_a_record_or_rollouts_is_refused_as_input(arguments: tuple[str, ...], tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["train", *(one.format(tmp_path) for one in arguments)])
    assert getattr(done.exception, "exit_code", None) == 2
    assert not (tmp_path / "new").exists() and not (tmp_path / "replay").exists()
