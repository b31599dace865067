"""A transport of weights is one class and one entry of a dict."""

import pickle
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from types import ModuleType
from typing import ClassVar, Literal

import numpy as np
import pytest
import ray
import torch
import xxhash
from ray.exceptions import ObjectLostError, ObjectStoreFullError
from torch import Tensor

from rl.cluster.address import ClusterError
from rl.config.experiment import ExperimentConfig
from rl.engine import vllm_plugin
from rl.learner.actor import LearnerProcess
from rl.weights.source import WeightsError, WeightsLost, WeightSource
from rl.weights.transport import Received, Transport
from rl.weights.transports import TRANSPORTS
from rl.weights.transports.object_store import ObjectStore
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


class InProcess(Held):
    transport: Literal["in_process"] = "in_process"


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> ExperimentConfig:
    monkeypatch.setitem(TRANSPORTS, "in_process", InProcess)
    return make_config(weights="in_process")


@pytest.mark.parametrize("written", [{}, "object_store", {"transport": "object_store"}])
def test_weights_travel_through_the_object_store_unless_something_else_is_named(written: object) -> None:
    assert make_config(weights=written).weights == ObjectStore()
    assert make_config(weights="shared_memory").weights == SharedMemory()
    assert ExperimentConfig.model_fields["weights"].default == ObjectStore()


def test_an_error_while_publishing_still_takes_all_tensors_with_which_other_ranks_help() -> None:
    taken = []

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for number in range(3):
            taken.append(number)
            yield str(number), torch.ones(1)

    class Full(Registry):
        def publish(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> WeightSource:
            next(iter(tensors))
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        LearnerProcess._published_by(Full(), tensors(), 1)
    assert taken == [0, 1, 2]


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


@pytest.fixture
def objects(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """Ray's object store in this process: what was stored, copied, by number."""
    stored: list[np.ndarray] = []

    def put(array: np.ndarray) -> int:
        stored.append(array.copy())
        stored[-1].setflags(write=False)
        return len(stored) - 1

    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "put", put)
    monkeypatch.setattr(ray, "get", lambda number: stored[number])
    return stored


def test_the_object_store_carries_each_version_as_one_array(objects: list[np.ndarray]) -> None:
    transport = ObjectStore()
    publisher = transport.publisher()
    tensors = [("a", torch.arange(3.0)), ("b", torch.tensor(7, dtype=torch.uint8))]
    sizes = (40, 3, 40, 41)  # the block of the version before is longer or shorter
    sources = [publisher.publish([*tensors, ("c", torch.full((size,), 0.5))], size) for size in sizes]
    assert len(objects) == len(sources)
    for size, source, array in zip(sizes, sources, objects, strict=True):
        received = transport.receive(transport.fetched(source))
        assert received.hash == source.hash == xxhash.xxh3_64_hexdigest(array.data)
        assert [tensor.tolist() for _, tensor in received.tensors] == [[0, 1, 2], 7, size * [0.5]]
        assert received.tensors[0][1].data_ptr() == array.ctypes.data  # not copied
        sent = pickle.loads(pickle.dumps(transport.fetched(source)))  # as to the processes of an engine's cards
        assert transport.receive(sent).tensors[2][1].tolist() == size * [0.5]
    with pytest.raises(WeightsError, match=r"the object store holds version 40, not 9"):
        transport.receive(transport.fetched(replace(sources[0], version=9)))


def test_an_adapter_brings_its_base_and_a_lost_array_is_told(
    objects: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    transport = ObjectStore()
    publisher = transport.publisher()
    base = publisher.publish([("a", torch.ones(1000))], -1)
    source = transport.fetched(replace(publisher.publish([("b", torch.ones(2))], 1), base=base))
    assert source.base is not None and transport.receive(source.base).tensors[0][1].sum() == 1000

    def lost(number: int) -> None:
        raise ObjectLostError("ab" * 28, None, "")

    monkeypatch.setattr(ray, "get", lost)
    with pytest.raises(WeightsLost, match="version -1 cannot be fetched: ObjectLostError"):
        transport.fetched(replace(source, base=base))


def test_the_object_store_outside_of_a_cluster_and_without_room_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    publisher = ObjectStore().publisher()
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(ClusterError, match="weights: shared_memory needs none"):
        publisher.publish([("a", torch.ones(2))], 1)

    def full(array: np.ndarray) -> None:
        raise ObjectStoreFullError("it is full")

    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "put", full)
    with pytest.raises(OSError, match=r"no room for 0 MiB; raise ray\.object_store_mib"):
        publisher.publish([("a", torch.ones(2))], 1)


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
