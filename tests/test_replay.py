"""An asynchronous run that was killed and resumed is repeated bit for bit; the two halves of a run."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from envs.json_lines import read_lines
from rl.runs.saved_rollouts import load_rollouts
from tests.test_benchmarks import run_short
from tests.test_train import START_TIMEOUT_S, run, state_of, steps, without_time

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the benchmark's runs: one of which a worker, the learner and the driver were killed, and its
    repetition.
    """
    folder = tmp_path_factory.mktemp("replay")
    report = run_short("replay", folder, "--runs", str(folder / "runs"))
    (folder / "runs" / "report.json").write_text(json.dumps(report))
    return folder / "runs"


@pytest.fixture(scope="module")
def yaml(runs: Path) -> Path:
    """The experiment of that run, on a policy that calls tools and replies at length."""
    return runs / "experiment.yaml"


@pytest.fixture(scope="module")
def recorded(runs: Path) -> Path:
    return runs / "repaired" / "run"


def replay(run_dir: Path, out: Path, *more: str) -> tuple[int, str]:
    """Exit code and output."""
    command = [sys.executable, "-m", "rl", "train", "--replay", str(run_dir), f"run_dir={out}", *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=2 * START_TIMEOUT_S, check=False)
    return done.returncode, done.stdout[-3000:] + done.stderr[-3000:]


def rollouts(run_dir: Path) -> dict[str, list[dict[str, Any]]]:
    """Everything that was saved of the rollouts, but for their seconds."""
    saved = {path.name: path.read_text().splitlines() for path in (run_dir / "rollouts").glob("*.jsonl")}
    return {name: [json.loads(line) | {"seconds": 0} for line in lines] for name, lines in saved.items()}


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    """What a clock says is left out, and how many groups were in flight, which follows it."""
    return [line | {"groups_in_flight": 0} for line in without_time(steps(run_dir))]


def check_equal(run_dir: Path, again: Path) -> None:
    assert rollouts(again) == rollouts(run_dir)
    assert metrics(again) == metrics(run_dir)
    assert state_of(again) == state_of(run_dir)


def test_a_run_with_tools_in_processes_whose_parts_were_killed_is_repeated_bit_for_bit(
    runs: Path, recorded: Path
) -> None:
    report = json.loads((runs / "report.json").read_text())
    raw, summary = report["raw"]["repaired"], report["summary"]["repaired"]
    assert raw["codes"] == [-9, 0] and [one["code"] for one in raw["replays"]] == [0], raw
    assert summary["rollouts_of_several_turns"] and summary["replies_across_a_publish"]
    assert summary["equal_replays"] == summary["replays"] == 1
    assert summary["replaced_workers"] == 1
    begun = [next(read_lines(folder / "loop.jsonl")) for folder in sorted((recorded / "record").glob("*"))]
    assert [line["again"] for line in begun] == [False, True, False]
    assert begun[0]["step"] == 0 < begun[1]["step"] <= begun[2]["step"]
    check_equal(recorded, runs / "repaired" / "replay_0" / "run")


def test_the_first_token_that_differs_is_told_and_the_exit_code_says_so(recorded: Path, tmp_path: Path) -> None:
    """The replay starts from a policy one of whose weights has changed a little."""
    changed = tmp_path / "recorded"
    shutil.copytree(recorded, changed, ignore=shutil.ignore_patterns("checkpoints", "replay"))
    config = changed / "record" / "0001" / "config.yaml"
    (policy,) = (line.split(": ")[1] for line in config.read_text().splitlines() if line.startswith("  path: "))
    shutil.copytree(policy, tmp_path / "policy")
    weights = tmp_path / "policy" / "model.safetensors"
    tensors = load_file(weights)
    tensors["lm_head.weight"] *= 1.001
    save_file(tensors, weights, {"format": "pt"})
    config.write_text(config.read_text().replace(policy, str(tmp_path / "policy")))
    code, output = replay(changed, tmp_path / "again")
    assert code == 4
    assert "the replay differs from its recording: group heldout-" in output
    assert ", member 0, turn 0, token 0: recorded id " in output and ", now id " in output


def test_the_rollouts_of_a_run_train_the_same_weights_without_engines(
    yaml: Path, recorded: Path, tmp_path: Path
) -> None:
    run(yaml, tmp_path / "run", "--rollouts-from", str(recorded))
    trained, before = (state_of(one) | {"ledger": ""} for one in (tmp_path / "run", recorded))
    assert trained == before  # but for groups that were in flight at the end
    assert '"evaluation"' not in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_rollouts_that_were_only_played_are_trained_on(yaml: Path, tmp_path: Path) -> None:
    played = tmp_path / "played"
    run(yaml, played, "--only-rollouts", "train.num_steps=2", "precision=nvfp4")
    assert [line["step"] for line in steps(played)] == [1, 2]
    versions = {
        version
        for path in (played / "rollouts").glob("train_*")
        for rollout in load_rollouts(path)
        for turn in rollout.turns
        for version in turn.reply.columns["version"].tolist()
    }
    assert versions == {0}
    run(yaml, tmp_path / "run", "--rollouts-from", str(played), "train.num_steps=2", "precision=nvfp4")
    assert rollouts(tmp_path / "run") == rollouts(played)
    assert steps(tmp_path / "run")[0]["update/mismatch"] < 1.05
