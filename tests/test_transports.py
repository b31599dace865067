"""A transport of weights is one class and one entry of a dict."""

import sys
from collections.abc import Collection, Iterable
from types import ModuleType
from typing import ClassVar, Literal

import pytest
import torch
from torch import Tensor

from rl.config.experiment import ExperimentConfig
from rl.engine import vllm_plugin
from rl.weights.source import WeightsError, WeightSource
from rl.weights.transport import Received, Transport
from rl.weights.transports import TRANSPORTS
from rl.weights.transports.shared_memory import SharedMemory
from tests.makers import make_config

HELD: dict[int, list[tuple[str, Tensor]]] = {}


class Registry:
    """The learner's end of `InProcess`: versions in a dict."""

    def publish(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> WeightSource:
        HELD[version] = list(tensors)
        return WeightSource(version, ("held", version), f"hash {version}")

    def forget(self, source: WeightSource) -> None:
        HELD.pop(source.version, None)

    def close(self) -> None:
        HELD.clear()


class Held(Transport):
    """Weights stay in the process."""

    backend: ClassVar[str] = "in_process"
    transfer: ClassVar[tuple[str, str] | None] = ("my.package", "MyTransfer")

    def publisher(self) -> Registry:
        return Registry()

    def receive(self, source: WeightSource) -> Received:
        if source.version not in HELD:
            raise WeightsError(f"version {source.version} was forgotten")
        return Received(HELD[source.version], source.hash)

    def reaches(self, nodes: Collection[str]) -> bool:
        return True


class InProcess(Held):
    transport: Literal["in_process"] = "in_process"


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> ExperimentConfig:
    monkeypatch.setitem(TRANSPORTS, "in_process", InProcess)
    return make_config(weights="in_process")


@pytest.mark.parametrize("written", [{}, "shared_memory", {"transport": "shared_memory"}])
def test_weights_travel_through_shared_memory_unless_something_else_is_named(written: object) -> None:
    assert make_config(weights=written).weights == SharedMemory()
    assert make_config().weights.name == "shared_memory"


def test_a_new_transport_carries_what_the_learner_publishes(config: ExperimentConfig) -> None:
    publisher = config.weights.publisher()
    source = publisher.publish([("a", torch.ones(2))], 3)
    received = config.weights.receive(source)
    assert received.hash == source.hash
    assert [(name, tensor.tolist()) for name, tensor in received.tensors] == [("a", [1.0, 1.0])]
    publisher.forget(source)
    with pytest.raises(WeightsError, match="version 3"):
        config.weights.receive(source)


def test_shared_memory_carries_versions_until_they_are_forgotten() -> None:
    transport = SharedMemory()
    publisher = transport.publisher()
    try:
        sources = [publisher.publish([("a", torch.full((2,), float(version)))], version) for version in (1, 2)]
        received = [transport.receive(source) for source in sources]
        assert [each.tensors[0][1].tolist() for each in received] == [[1.0, 1.0], [2.0, 2.0]]
        assert [each.hash for each in received] == [source.hash for source in sources]
        publisher.forget(sources[0])
        with pytest.raises(WeightsError, match="version 1"):
            transport.receive(sources[0])
    finally:
        publisher.close()
    with pytest.raises(WeightsError, match="version 2"):
        transport.receive(sources[1])


def test_shared_memory_reaches_one_node_only() -> None:
    assert SharedMemory().reaches({"a"})
    assert not SharedMemory().reaches({"a", "b"})


def test_the_plugin_registers_the_transfer_of_every_transport(
    config: ExperimentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ours(Held):
        transport: Literal["ours"] = "ours"
        backend: ClassVar[str] = "nccl"
        transfer: ClassVar[tuple[str, str] | None] = None  # vLLM's own

    registered: dict[str, tuple[str, str]] = {}

    class WeightTransferEngineFactory:
        @staticmethod
        def register_engine(name: str, module: str, class_name: str) -> None:
            assert name not in registered
            registered[name] = (module, class_name)

    for name in ("vllm", "vllm.distributed", "vllm.distributed.weight_transfer"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    factory = sys.modules["vllm.distributed.weight_transfer"]
    monkeypatch.setattr(factory, "WeightTransferEngineFactory", WeightTransferEngineFactory, raising=False)
    monkeypatch.setitem(TRANSPORTS, "ours", Ours)
    vllm_plugin._add_weight_transfers()
    assert registered == {
        "polygym": ("rl.weights.vllm_transfer", "ReceivedWeights"),
        "polygym_ipc": ("rl.weights.vllm_broadcast", "SharedCardWeights"),
        "polygym_nccl": ("rl.weights.vllm_broadcast", "BroadcastWeights"),
        "in_process": ("my.package", "MyTransfer"),
    }
    assert config.weights.backend == "in_process"
