"""The memory of processes and their parts, as metrics and as a table."""

from pathlib import Path

import pytest

from rl.engine.work_times import Work
from rl.learner.learner import Learner
from rl.process_memory import MIB, resident_mib
from rl.runs.folder import RunFolder
from rl.runs.history import read_history
from rl.runs.memory import memory_metrics, memory_table
from rl.runs.tracker import Tracker
from tests.makers import make_config
from tests.test_learner import config_with, hybrid_path, make_sample, on_policy

assert hybrid_path


def test_the_rank_and_the_engine_that_hold_most_count_and_one_that_is_silent_does_not() -> None:
    workers = [Work(memory_mib=700.0), Work(), Work(memory_mib=900.0)]
    assert memory_metrics(300.0, {"process": 500.0, "weights": 40.0}, workers) == {
        "memory_mib/driver": 300.0,
        "memory_mib/learner": 500.0,
        "memory_mib/learner/weights": 40.0,
        "memory_mib/engine": 900.0,
    }
    assert memory_metrics(300.0, {}, []) == {"memory_mib/driver": 300.0}


def test_the_table_has_the_last_step_and_the_most(tmp_path: Path) -> None:
    config = make_config(tmp_path / "run")
    with RunFolder.open(config) as run, Tracker(run, config) as tracker:
        for step, mib in enumerate((2048.0, 3072.0, float("nan"), 1024.0), start=1):
            tracker.track(step, {"memory_mib/learner/moments": mib, "memory_mib/engine": float("nan")})
    assert "<tr><td>learner: moments</td><td>1,024</td><td>3,072</td></tr>" in memory_table(
        read_history(config.run_dir)
    )
    assert "engine" not in memory_table(read_history(config.run_dir))


@pytest.mark.parametrize(("moments", "num_bytes"), [("float32", 4), ("bfloat16", 2)])
def test_the_memory_of_weights_gradients_and_moments_is_counted(hybrid_path, moments, num_bytes):
    learner = Learner(hybrid_path, config_with(moments=moments))
    parameters = list(learner.model.parameters())
    assert learner.memory_mib()["moments"] == 0
    learner.update(on_policy(learner.model, [make_sample([1, 2, 3, 4])]))
    held, state = learner.memory_mib(), learner._optimizer.state
    assert held["weights"] == sum(4 * p.numel() for p in parameters) / MIB
    assert held["gradients"] == sum(4 * p.numel() for p in parameters if p.requires_grad) / MIB
    assert held["moments"] == sum(2 * num_bytes * p.numel() + 4 for p in state) / MIB > 0
    assert held["process"] == pytest.approx(resident_mib(), rel=0.1)
