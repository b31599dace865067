"""An asynchronous run over several environments is repeated bit for bit, also one that was killed; halves of a run."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file, save_file

from rl.runs.saved_rollouts import load_rollouts
from tests.test_train import START_TIMEOUT_S, interrupted, killed, run, state_of, steps, without_time

__all__ = ["killed"]
pytestmark = pytest.mark.slow
YAML = """
seed: 3
policy: {{path: {policy}}}
environments: {{math/Arithmetic-v0: {{}}, tools/Store-v0: {{}}, chat/Constraints-v0: {{}}}}
train: {{num_steps: 8, num_prompts: 3, group_size: 4, checkpoint_every: 2, max_staleness: 2}}
evaluation: {{num_tasks: 1, every: 4}}
rollout: {{max_in_flight: 6, num_workers: 2, kv_cache_gib: 0.1, temperature: 1.3}}
ray: {{address: local}}
"""


@pytest.fixture(scope="module")
def yaml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment on a policy that calls tools and replies at length."""
    folder = tmp_path_factory.mktemp("experiment")
    supervised = folder / "supervised.yaml"
    supervised.write_text(
        f"run_dir: {folder}/run\nseed: 3\npolicy: {{build: {{}}}}\ntrain: {{num_steps: 1}}\n"
        "environments: {math/Arithmetic-v0: {}, tools/Store-v0: {}, chat/Constraints-v0: {}}\n"
        "sft: {num_steps: 30, num_conversations: 600, batch_size: 16}\n"
    )
    subprocess.run([sys.executable, "-m", "sft", "train", str(supervised)], check=True, timeout=START_TIMEOUT_S)
    path = folder / "experiment.yaml"
    path.write_text(YAML.format(policy=folder / "run" / "sft"))
    return path


@pytest.fixture(scope="module")
def recorded(yaml: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("recorded") / "run"
    run(yaml, run_dir)
    return run_dir


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


def test_an_asynchronous_run_with_tools_is_repeated_three_times_bit_for_bit(recorded: Path, tmp_path: Path) -> None:
    played = [one for path in (recorded / "rollouts").glob("train_*") for one in load_rollouts(path)]
    assert any(len(rollout.turns) > 1 for rollout in played)
    replies = [turn.reply for rollout in played for turn in rollout.turns]
    assert any(len(set(reply.columns["version"].tolist())) > 1 for reply in replies)  # a publish in the middle
    for number in range(3):
        out = tmp_path / str(number)
        code, output = replay(recorded, out)
        assert code == 0, output
        assert "all 8 recorded steps were repeated bit for bit" in output
        check_equal(recorded, out)


def test_a_run_that_was_killed_and_resumed_is_repeated_attempt_by_attempt(
    yaml: Path, killed: list[psutil.Process], tmp_path: Path
) -> None:
    run_dir, out = tmp_path / "run", tmp_path / "again"
    _, family = interrupted(yaml, run_dir, signal.SIGKILL, lambda: len(steps(run_dir)) >= 5)
    killed += family
    run(yaml, run_dir, "--resume")
    kept = [
        json.loads((folder / "loop.jsonl").read_text().splitlines()[0]) for folder in (run_dir / "record").glob("*")
    ]
    assert sorted(line["step"] for line in kept) == [0, 4]
    code, output = replay(run_dir, out)
    assert code == 0, output
    check_equal(run_dir, out)


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
