"""The transport through CUDA IPC, without a GPU: what the engine is told to map, and where it can be used."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from rl.weights import ipc
from rl.weights.broadcast import Incoming
from rl.weights.ipc import IpcSender, OnCard
from rl.weights.source import Listener, WeightSource
from rl.weights.transports.ipc import Ipc
from tests.test_nccl import TENSORS, hash_of

MAPPED: dict[int, Tensor] = {}


@pytest.fixture(autouse=True)
def small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    def handle(buffer: Tensor) -> dict[str, Any]:
        MAPPED[len(MAPPED)] = buffer
        return {"card": len(MAPPED) - 1}

    monkeypatch.setattr(ipc, "_handle", handle)
    monkeypatch.setattr(ipc, "BUFFER_BYTES", 40)


def received(source: WeightSource) -> tuple[dict[str, Tensor], str]:
    """As an engine maps and loads it."""
    assert isinstance(source.place, OnCard)
    arrived: list[tuple[str, Tensor]] = []
    incoming = Incoming(source.place.metas, arrived.extend)
    for update in source.place.updates:
        views = MAPPED[update["ipc_handles"]["card"]].split(update["tensor_sizes"])
        assert update["shapes"] == [[len(view)] for view in views]
        incoming.load_weights(zip(update["names"], views, strict=True))
    return dict(arrived), incoming.checksum.hexdigest()


def test_an_engine_maps_buffers_that_are_freed_afterwards() -> None:
    sender = IpcSender(torch.device("cpu"))
    (source,) = sender.announce(1, TENSORS.items, None, [Listener(0, 1)])
    assert isinstance(source.place, OnCard)
    # of 16, 32, 16, 16 and 32 bytes: a buffer is full at 40
    assert [update["tensor_sizes"] for update in source.place.updates] == [[16, 32], [16, 16, 32]]
    tensors, digest = received(source)
    assert digest == sender.send() == hash_of(TENSORS)
    assert all(torch.equal(tensors[name].float(), TENSORS[name].float()) for name in TENSORS)
    assert len(sender._buffers) == 2
    sender.release()
    assert sender._buffers == []


def test_an_engine_maps_an_adapters_base_once() -> None:
    sender = IpcSender(torch.device("cpu"))
    adapter: Mapping[str, Tensor] = {"w.lora_A": torch.ones(1, 2)}
    (first,) = sender.announce(1, adapter.items, TENSORS.items, [Listener(0, 1)])
    assert sender.send() == f"{hash_of(adapter)}+{hash_of(TENSORS)}"
    assert first.base is not None and received(first.base)[1] == hash_of(TENSORS)
    (second,) = sender.announce(2, adapter.items, TENSORS.items, [Listener(0, 1)])
    assert sender.send() == hash_of(adapter)
    assert second.base is not None and second.base.hash == first.base.hash  # the engine has it
    (third,) = sender.announce(2, adapter.items, TENSORS.items, [Listener(1, 1)])
    assert third.base is not None and third.base.hash != first.base.hash
    assert received(third.base)[1] == hash_of(TENSORS)


@pytest.mark.parametrize(
    ("ranks", "engines", "told"),
    [
        ([0.5], [0.5], ""),
        ([0], [0], "both must have a part of one GPU"),
        ([1], [1], "both must have a part of one GPU"),
        ([0.7], [0.5], "both must have a part of one GPU"),
        ([0.5, 0.5], [0.5], "it connects one rank and one engine"),
    ],
)
def test_it_needs_one_gpu_that_is_shared(ranks: list[float], engines: list[float], told: str) -> None:
    assert Ipc().fault(ranks, engines) == told
