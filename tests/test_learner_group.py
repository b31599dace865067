"""A learner of several processes: started, updated, published, saved and stopped through `LearnerGroup`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rl.algorithms.corrections import NonFiniteError
from rl.cluster.actors import ActorDied, Deadline, Pending
from rl.cluster.cluster import cluster
from rl.config.experiment import ExperimentConfig
from rl.learner.actor import LearnerProcess
from rl.learner.group import LearnerGroup
from rl.learner.learner import Learner
from rl.weights.shared_memory import read_weights
from rl.weights.source import WeightSource
from tests.families import write_policy
from tests.test_ranks import config_of, samples_of, with_nan

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_policy("qwen3", tmp_path_factory.mktemp("qwen3"))


@pytest.fixture(scope="module")
def config(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExperimentConfig]:
    tree: dict[str, Any] = config_of(policy, "float32", num_ranks=2).model_dump(mode="json")
    tree |= {"run_dir": str(tmp_path_factory.mktemp("run")), "ray": {"address": "local", "local_cpus": 4}}
    made = ExperimentConfig.model_validate(tree)
    with cluster(made):
        yield made


def test_two_processes_train_publish_and_go_on_as_one_would(
    config: ExperimentConfig, policy: Path, tmp_path: Path
) -> None:
    samples = samples_of(policy)
    alone = Learner(policy, config)
    group = LearnerGroup(config, policy)
    try:
        assert "float32" in group.describe()
        first, expected = group.update(samples), alone.update(samples)
        assert (first.policy_version, first.num_loss_tokens) == (1, expected.num_loss_tokens)
        assert first.grad_norm == pytest.approx(expected.grad_norm, rel=1e-5)
        source = group.publish()
        assert isinstance(source, WeightSource)
        names = [name for name, _ in read_weights(source).tensors]
        assert source.version == 1 and "model.layers.1.mlp.down_proj.weight" in names
        group.save(tmp_path / "learner")
        second = group.update(samples)
    finally:
        group.shutdown()
    resumed = LearnerGroup(config, policy, tmp_path / "learner")
    try:
        resumed.describe()
        again = resumed.update(samples)
        assert (again.loss, again.grad_norm, again.policy_version) == (second.loss, second.grad_norm, 2)
        broken = [*samples[:-1], type(samples[-1])(samples[-1].env_id, with_nan(samples[-1].tokens), 1.0)]
        with pytest.raises(NonFiniteError):  # of the rank that met it, not the echo of the other
            resumed.update(broken)
        assert resumed.update(samples).policy_version == 3
    finally:
        resumed.shutdown()


def test_the_death_of_one_rank_is_told_at_once(config: ExperimentConfig, policy: Path) -> None:
    group = LearnerGroup(config, policy)
    try:
        group.describe()
        killed: Pending[Any] = group._ranks[1].call(LearnerProcess.shutdown)
        killed.wait(Deadline(30.0, "leaving", "none"))
        group._ranks[1].stop(LearnerProcess.shutdown)
        with pytest.raises(ActorDied):
            group.update(samples_of(policy))
    finally:
        group.shutdown()
