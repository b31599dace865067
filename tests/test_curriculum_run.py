"""A whole run whose curriculum follows its own pass rates: killed and resumed, and trained again from its rollouts."""

import json
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from rl.runs.checkpoint import latest_checkpoint
from tests.test_train import interrupted, killed, run, state_of, steps, without_time, yaml

__all__ = ["killed", "yaml"]  # fixtures
pytestmark = pytest.mark.slow

CURRICULUM = {"option_sets": [{"level": 1}, {"level": 2}, {"level": 4}], "measured": {"solved_tries": 3}}
MORE = (
    f"environments.math/Arithmetic-v0.curriculum={json.dumps(CURRICULUM)}",
    "environments.tools/Store-v0.curriculum={num_tasks: 3, measured: {}}",
    "train.checkpoint_every=2",
)


def drawn(run_dir: Path) -> list[Any]:
    """The task of each rollout that was trained."""
    files = sorted((run_dir / "rollouts").glob("train_*.jsonl"))
    return [json.loads(line)["task"] for path in files for line in path.read_text().splitlines()]


def measured(run_dir: Path) -> Any:
    checkpoint = latest_checkpoint(run_dir / "checkpoints")
    assert checkpoint is not None
    return checkpoint.state["curricula"]


def test_a_run_that_follows_its_pass_rates_is_resumed_bit_for_bit_and_its_rollouts_can_be_trained_on(
    yaml: Path, killed: list[psutil.Process], tmp_path: Path
) -> None:
    undisturbed, broken, again = tmp_path / "undisturbed", tmp_path / "broken", tmp_path / "again"
    run(yaml, undisturbed, *MORE)
    code, family = interrupted(yaml, broken, signal.SIGKILL, lambda: len(steps(broken)) >= 3, *MORE)
    killed += family
    assert code == -signal.SIGKILL
    run(yaml, broken, *MORE, "--resume")
    assert drawn(broken) == drawn(undisturbed) and len(drawn(broken)) == 24
    assert state_of(broken) == state_of(undisturbed)
    assert measured(broken) == measured(undisturbed)
    assert without_time(steps(broken)) == without_time(steps(undisturbed))
    assert any("curriculum/math/Arithmetic-v0/share/level_4" in line for line in steps(broken))
    run(yaml, again, *MORE, "--rollouts-from", str(undisturbed))
    assert {**state_of(again), "ledger": ""} == {**state_of(undisturbed), "ledger": ""}
