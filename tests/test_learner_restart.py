"""A learner that dies goes on from the newest checkpoint within the same run, on any number of ranks."""

import contextlib
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.families import write_policy
from tests.test_train import START_TIMEOUT_S, command, notes, run, steps, trained_ordinals

pytestmark = pytest.mark.slow
YAML = """
seed: 3
policy: {{path: {policy}, max_tokens: 128}}
environments: {{math/Arithmetic-v0: {{}}}}
train: {{num_steps: 5, num_prompts: 2, group_size: 2, checkpoint_every: 2, max_staleness: {staleness}}}
learner: {{num_ranks: 2}}
evaluation: {{num_tasks: 2}}
rollout: {{max_reply_tokens: 16, max_in_flight: 8, kv_cache_gib: 0.1}}
ray: {{address: local}}
"""


def yaml_of(tmp_path: Path, staleness: int) -> Path:
    yaml = tmp_path / "experiment.yaml"
    yaml.write_text(YAML.format(policy=write_policy("qwen3", tmp_path / "policy"), staleness=staleness))
    return yaml


def ranks_of(driver: int) -> list[psutil.Process]:
    found = []
    for process in psutil.Process(driver).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "LearnerProcess" in " ".join(process.cmdline()):
                found.append(process)
    return found


def run_with_deaths(yaml: Path, run_dir: Path, step: int, num: int, *more: str) -> tuple[int, str]:
    """Run, and kill one rank of the learner after this step, and so often one that starts in its place; exit code and
    output.
    """
    process: Any = subprocess.Popen(
        command(yaml, run_dir, *more), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    killed: list[psutil.Process] = []
    deadline = time.monotonic() + START_TIMEOUT_S
    while len(killed) < 2 * num and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
        ranks = [rank for rank in ranks_of(process.pid) if rank not in killed]
        if len(steps(run_dir)) >= (0 if killed else step) and len(ranks) == 2:
            ranks[1].kill()
            killed += ranks
    assert len(killed) == 2 * num
    output, _ = process.communicate(timeout=START_TIMEOUT_S)
    return process.returncode, output


def test_a_dead_rank_and_one_that_dies_while_it_starts_again_cost_no_task_and_no_run(tmp_path: Path) -> None:
    yaml, run_dir = yaml_of(tmp_path, staleness=1), tmp_path / "run"
    code, output = run_with_deaths(yaml, run_dir, 3, 2)
    assert code == 0, output[-3000:]
    assert "the learner died and was started again from step" in output
    for said in ("was started again from step", ": ActorDiedError: ", "finished groups that are not played again: "):
        assert any(said in note for note in notes(run_dir))
    assert [line["step"] for line in steps(run_dir)] == [1, 2, 3, 4, 5]
    assert trained_ordinals(run_dir) == list(range(10))
    assert all(line["staleness_max"] <= 1 for line in steps(run_dir))


def test_a_learner_that_dies_too_often_ends_the_run_which_one_rank_can_resume(tmp_path: Path) -> None:
    yaml, run_dir = yaml_of(tmp_path, 0), tmp_path / "run"
    code, output = run_with_deaths(yaml, run_dir, 2, 1, "train.num_learner_restarts=0")
    assert code == 1
    assert "the learner died; --resume goes on from the newest checkpoint" in output
    run(yaml, run_dir, "learner.num_ranks=1", "--resume")
    assert [line["step"] for line in steps(run_dir)] == [1, 2, 3, 4, 5]
    assert trained_ordinals(run_dir) == list(range(10))
