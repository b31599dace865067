"""A learner of several processes: started, updated, published, saved and stopped through `LearnerGroup`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from rl.algorithms.corrections import NonFiniteError
from rl.cluster.actors import ActorDied, Deadline, Pending, wait_together
from rl.cluster.cluster import cluster
from rl.config.experiment import ExperimentConfig
from rl.file_hashes import files_in
from rl.learner.actor import LearnerProcess
from rl.learner.group import LearnerGroup
from rl.learner.learner import Learner
from rl.weights.broadcast import Broadcast, Outgoing, metas_of
from rl.weights.names import checkpoint_tensors
from rl.weights.nccl import NcclSender
from rl.weights.shared_memory import read_weights
from rl.weights.source import Listener, WeightSource
from rl.weights.transports.nccl import Nccl
from tests.families import write_policy
from tests.makers import make_config
from tests.test_ranks import config_of, samples_of, with_nan

pytestmark = pytest.mark.slow


class SilentTrainer:
    """vLLM's trainer, but for the network: it takes all tensors, and sends them to nobody."""

    def __init__(self, source: Outgoing) -> None:
        self.source = source

    def send_weights(self) -> None:
        for _ in self.source:
            pass

    def shutdown(self) -> None: ...


class SilentSender(NcclSender):
    def _join(self, outgoing: Outgoing) -> Any:
        return SilentTrainer(outgoing)


class Silent(Nccl):
    def sender(self, rank: int, device: torch.device) -> SilentSender:
        return SilentSender(rank, device)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_policy("qwen3", tmp_path_factory.mktemp("qwen3"))


@pytest.fixture(scope="module")
def config(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExperimentConfig]:
    tree: dict[str, Any] = config_of(policy, "float32", num_ranks=2).model_dump(mode="json")
    ray = {"address": "local", "local_cpus": 6}  # 3 are reserved for a run; the groups below are placed beside them
    tree |= {"run_dir": str(tmp_path_factory.mktemp("run")), "ray": ray}
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
        folder = tmp_path / "learner"
        told = group.save(folder, with_policy=False)
        assert set(map(folder.joinpath, told)) == set(files_in(folder))
        assert {"state/__1_0.distcp", "model/tokenizer.json"} <= told.keys() and "model/config.json" not in told
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


def test_a_rank_that_is_stopped_is_lost_at_the_deadline(
    config: ExperimentConfig, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wait_together, "__defaults__", (1.0,))  # the grace of the others
    hasty = config.model_copy(update={"train": config.train.model_copy(update={"update_timeout_s": 5.0})})
    group = LearnerGroup(hasty, policy)
    try:
        group.describe()
        listed = psutil.process_iter(["cmdline"])  # others end meanwhile
        ranks = [process for process in listed if "LearnerProcess" in " ".join(process.info["cmdline"] or ())]
        mine = [rank for rank in ranks if psutil.Process() in rank.parents()]
        mine[-1].suspend()
        with pytest.raises(ActorDied, match=r"an update .* took longer than 5 s; train\.update_timeout_s"):
            group.update(samples_of(policy))
    finally:
        group.shutdown()
    assert psutil.wait_procs(mine[-1:], timeout=30)[1] == []


def test_all_ranks_take_part_in_sending_and_tell_the_hash(config: ExperimentConfig, policy: Path) -> None:
    live = config.model_copy(update={"weights": Silent()})
    group = LearnerGroup(live, policy, epoch=2)
    try:
        group.describe()
        tensors = list(checkpoint_tensors(Learner(policy, config).model, "float32"))
        for number in (1, 2):
            offer = group.publish().offer([Listener(0, 1), Listener(number, 2)])
            places = [source.place for source in offer.sources]
            assert [(source.version, source.epoch, source.hash) for source in offer.sources] == [(0, 2, "")] * 2
            infos = [place.init_info for place in places if isinstance(place, Broadcast)]
            assert [(info["rank_offset"], info["world_size"]) for info in infos] == [(1, 4), (2, 4)]
            expected = Outgoing(lambda: tensors, metas_of(tensors), torch.device("cpu"))
            assert len(list(expected)) == len(tensors)
            told = [sending.wait(Deadline(60.0, "sending", "none")) for sending in offer.sending]
            assert told == [expected.checksum.hexdigest()] * 2
            offer.done()
    finally:
        group.shutdown()


def test_a_rank_with_a_gpu_meets_the_others_with_the_number_of_its_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a number torch refuses the device before the ranks have met."""
    met: list[Any] = []
    monkeypatch.setattr("rl.ranks.join_ranks", lambda *given: met.append(given))
    monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
    monkeypatch.setattr("rl.learner.actor.join_run_log", lambda *given: None)
    monkeypatch.setattr("signal.signal", lambda *given: None)
    config = make_config(tmp_path, learner={"num_ranks": 2, "gpus": 1})
    LearnerProcess(config, tmp_path, rank=1)._join("10.0.0.1:2000")
    rank, num, address, device, *_ = met[0]
    assert (rank, num, address, device) == (1, 2, "10.0.0.1:2000", torch.device("cuda", 0))
