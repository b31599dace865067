"""A real engine loads weights while they arrive, as over NCCL; the pieces come through memory instead of a network."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

from rl.chat.formats.nemotron import NemotronFormat
from rl.config.experiment import ExperimentConfig
from rl.config.policy import TinyHybrid
from rl.data_types import Sample
from rl.learner.actor import LearnerProcess
from rl.learner.learner import Learner
from rl.policies import build_policy
from rl.weights import nccl
from rl.weights.nccl import NcclSender
from rl.weights.source import Listener
from rl.weights.transports.nccl import Nccl
from tests.makers import make_config
from tests.test_agreement import as_sample, differences
from tests.test_engine import MAX_TOKENS, sample_many

pytestmark = pytest.mark.slow
SENT: list[tuple[str, torch.Tensor]] = []
"""What the learner sent and the engine has not received yet."""
NUM_IN_A_PIECE = 5


class OverMemory(Nccl):
    backend: ClassVar[str] = "over_memory"


class Trainer:
    """vLLM's trainer, but for the network."""

    def __init__(self, source: Any) -> None:
        self.source = source

    def send_weights(self) -> None:
        SENT.extend((name, wire.clone()) for name, wire in self.source)

    def shutdown(self) -> None: ...


class Transfer:
    """vLLM's transfer, but for the network: pieces lie in one buffer each."""

    def __init__(self, config: Any, vllm_config: Any, device: Any, model: Any) -> None:
        self.model = model
        self.joined: Any = None

    def init_transfer_engine(self, init_info: Any) -> None:
        self.joined = init_info

    def parse_update_info(self, told: dict[str, Any]) -> SimpleNamespace:
        return SimpleNamespace(**told)

    def receive_weights(self, told: SimpleNamespace) -> None:
        assert self.joined.rank_offset == 1
        names, sizes = told.names, [size for (size,) in told.shapes]
        for start in range(0, len(names), NUM_IN_A_PIECE):
            piece = [SENT.pop(0) for _ in names[start : start + NUM_IN_A_PIECE]]
            buffer = torch.cat([wire for _, wire in piece])
            views = buffer.split(sizes[start : start + NUM_IN_A_PIECE])
            self.model.load_weights(zip([name for name, _ in piece], views, strict=True))

    def shutdown(self) -> None: ...


@pytest.fixture(scope="module", autouse=True)
def over_memory() -> None:
    from vllm.distributed.weight_transfer import WeightTransferEngineFactory

    from rl.weights.vllm_broadcast import BroadcastWeights

    class MemoryWeights(BroadcastWeights):
        transfer_class: Any = Transfer

    WeightTransferEngineFactory.register_engine(OverMemory.backend, MemoryWeights)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy")
    build_policy(TinyHybrid(), ["<|im_start|>user\n1+1=?<|im_end|>\n"] * 200, folder, 0, NemotronFormat())
    return folder


def config_of(policy: Path, precision: str, adapter: dict[str, Any] | None) -> ExperimentConfig:
    return make_config(
        policy={"path": policy, "max_tokens": MAX_TOKENS},
        precision=precision,
        weights=OverMemory(),
        rollout={"max_in_flight": 12, "kv_cache_gib": 0.25},
        learner={"learning_rate": 5e-3, "warmup_steps": 0, "adapter": adapter},
    )


def mean_difference(learner: Learner, samples: list[Sample]) -> float:
    with learner.folded.in_place():
        deltas = differences(learner.model, samples, getattr(torch, learner._config.precision.arithmetic))
    return float(deltas.abs().mean())


@pytest.mark.parametrize(
    ("precision", "adapter", "limit"),
    [
        ("nvfp4", None, 0.06),
        ("float32", {"rank": 4, "alpha": 8}, 1e-5),
    ],  # a hybrid in bfloat16: 0.011 to 0.034, as over shared memory
)
def test_what_arrives_in_pieces_is_what_the_learner_holds(
    policy: Path, precision: str, adapter: dict[str, Any] | None, limit: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rl.engine.vllm_core import VllmEngine

    info = {"master_address": "nowhere", "master_port": 1, "world_size": 2}
    monkeypatch.setattr(nccl, "_group", lambda size: info)
    monkeypatch.setattr(NcclSender, "_join", lambda self, outgoing: Trainer(outgoing))
    config = config_of(policy, precision, adapter)
    process = LearnerProcess(config, policy)
    process.start()
    engine = VllmEngine(policy, config, lockstep_steps=2)

    def publish(listeners: Sequence[Listener]) -> None:
        (source,) = process.announce(listeners)
        digest = process.send()
        assert asyncio.run(engine.load_weights(source)) == digest
        assert not SENT

    try:
        learner = process._learner
        if config.precision.is_quantised:
            publish([Listener(0, 1)])
        for number in (0, 0, 1):  # as if another engine had been replaced after the second version
            turns = asyncio.run(sample_many(engine, 20, first_seed=1000))
            samples = [as_sample(turn, 1.0 if place % 2 else -1.0) for place, turn in enumerate(turns)]
            before = mean_difference(learner, samples)
            assert before < limit
            learner.update(samples)
            assert mean_difference(learner, samples) > 2 * before
            publish([Listener(number, 1)])
    finally:
        engine.shutdown()
        process.shutdown()
