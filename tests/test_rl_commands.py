"""The commands of `python -m rl` as functions: exit codes, and a dry run that starts nothing."""

import sys
from pathlib import Path

import pytest

from rl.__main__ import main
from rl.config.experiment import ExperimentConfig
from rl.cpu_bfloat16 import has_quick_bfloat16
from rl.init import first_experiment


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["rl", *map(str, arguments)])
    try:
        return main()
    except SystemExit as end:  # click ends the process itself when all went well
        return int(end.code or 0)


@pytest.fixture
def yaml(tmp_path: Path) -> Path:
    path = tmp_path / "experiment.yaml"
    lines = [f"run_dir: {tmp_path}/run", "seed: 0", "policy: {build: {}}", "environments: {math/Arithmetic-v0: {}}"]
    path.write_text("\n".join([*lines, "sft: {}", "train: {num_steps: 1}"]) + "\n")
    return path


@pytest.mark.slow
def test_a_dry_run_starts_and_writes_nothing(
    yaml: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "train", yaml, "--dry-run") == 0
    assert f"{yaml}: nothing is wrong with it" in capsys.readouterr().out
    assert list(yaml.parent.iterdir()) == [yaml]


@pytest.mark.parametrize(("given", "resume"), [((), False), (("--resume",), True), (("--resume-if-any",), None)])
def test_the_options_say_whether_there_must_be_a_run_already(
    given: tuple[str, ...], resume: bool | None, yaml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[bool | None]()

    def train(_: ExperimentConfig, *, resume: bool | None) -> Path:
        asked.append(resume)
        return yaml

    monkeypatch.setattr("rl.train.train", train)
    assert run(monkeypatch, "train", yaml, *given) == 0
    assert asked == [resume]


def test_a_first_experiment_can_run_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    yaml = tmp_path / "first.yaml"
    assert run(monkeypatch, "init", yaml, "--env", "math/Arithmetic-v0", "--env", "tools/Store-v0") == 0
    assert run(monkeypatch, "train", yaml, "--dry-run") == 0
    assert run(monkeypatch, "init", yaml, "--env", "math/Arithmetic-v0") == 2
    assert run(monkeypatch, "init", tmp_path / "b.yaml", "--env", "math/Arithmatic-v0") == 2
    told = capsys.readouterr().err
    assert "first.yaml exists already" in told and "math/Arithmetic-v0" in told


@pytest.mark.parametrize("num_gpus", [0, 1, 4])
def test_a_first_experiment_for_a_checkpoint_is_valid_on_any_machine(num_gpus: int) -> None:
    tree = first_experiment("x", "some/model", ["math/Arithmetic-v0"], num_gpus)
    config = ExperimentConfig.model_validate(tree)
    assert config.reserved[1] == num_gpus
    assert config.precision.name == ("bf16" if num_gpus or has_quick_bfloat16() else "float32")
