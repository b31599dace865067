"""The transport over NCCL, without a GPU: what travels in which form, to which ranks, and in which order of calls."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from rl.cluster.actors import ActorDied, Deadline, DeadlinePassed
from rl.cluster.objects import ObjectLost
from rl.config.errors import ConfigError
from rl.engine.protocol import EngineError
from rl.engine.weight_loader import WeightLoader
from rl.precision.formats.nvfp4 import Nvfp4
from rl.preflight import preflight
from rl.rollouts import loading
from rl.rollouts.loading import begin_loading, check_hash
from rl.rollouts.worker import RolloutWorker
from rl.weights import nccl, object_store
from rl.weights.broadcast import Broadcast, Checksum, Incoming, Meta, Outgoing, metas_of, rank_offsets
from rl.weights.names import Restoring
from rl.weights.nccl import NcclSender
from rl.weights.source import Listener, Offer, WeightsError, WeightsLost, WeightSource
from tests.makers import make_config

CPU = torch.device("cpu")
SOON = Deadline(1.0, "publishing weights", "train.publish_timeout_s")
CODES, SCALES = torch.arange(24, dtype=torch.uint8).view(3, 8), torch.arange(3).view(3, 1).to(torch.float8_e4m3fn)
QUANTISED = {"up.weight": CODES, "up.weight_scale": SCALES, "up.weight_scale_2": torch.tensor(0.5)}
TENSORS: dict[str, Tensor] = {"norm": torch.arange(5).bfloat16(), **QUANTISED, "head": torch.ones(2, 3).T}


def sent(
    tensors: Mapping[str, Tensor], metas: Sequence[Meta] | None = None
) -> tuple[Outgoing, list[tuple[str, Tensor]]]:
    outgoing = Outgoing(lambda: tensors.items(), metas or metas_of(tensors.items()), CPU)
    return outgoing, list(outgoing)


def test_an_engine_has_a_rank_for_each_card_after_the_learner() -> None:
    assert rank_offsets([1, 1, 1]) == [1, 2, 3]
    assert rank_offsets([4, 2, 1]) == [1, 5, 7]


def test_tensors_travel_as_bytes_that_can_lie_in_one_buffer() -> None:
    outgoing, wire = sent(TENSORS)
    metas = metas_of(TENSORS.items())
    assert [meta.dtype for meta in metas] == ["bfloat16", "uint8", "float8_e4m3fn", "float32", "float32"]
    assert [len(tensor) for _, tensor in wire] == [16, 32, 16, 16, 32]  # of 10, 24, 3, 4 and 24 bytes
    (told,) = Broadcast("key", {}, metas).updates
    assert [[meta.name, list(meta.shape)] for meta in outgoing.metadata()] == [
        list(pair) for pair in zip(told["names"], told["shapes"], strict=True)
    ]
    assert set(told["dtype_names"]) == {"uint8"}
    arrived: list[tuple[str, Tensor]] = []
    incoming = Incoming(metas, arrived.extend)
    buffer = torch.cat([tensor for _, tensor in wire])
    views = buffer.split([len(tensor) for _, tensor in wire])
    incoming.load_weights(zip(told["names"][:3], views[:3], strict=True))
    incoming.load_weights(zip(told["names"][3:], views[3:], strict=True))
    assert incoming.checksum.hexdigest() == outgoing.checksum.hexdigest()
    for name, tensor in arrived:
        assert tensor.dtype == TENSORS[name].dtype
        assert torch.equal(tensor.float(), TENSORS[name].float())


def hash_of(tensors: Mapping[str, Tensor]) -> str:
    outgoing, _ = sent(tensors)
    return outgoing.checksum.hexdigest()


def test_the_hash_is_the_sum_of_bytes_combined_in_order() -> None:
    def words(*numbers: int) -> Tensor:
        return torch.tensor(numbers, dtype=torch.int64)

    metas = metas_of({"a": words(3, 4), "b": words(5, 0)}.items())
    empty = int(Checksum(metas).hexdigest(), 16)
    expected = (empty * 1_000_003 + 7) * 1_000_003 + 5
    assert hash_of({"a": words(3, 4), "b": words(5, 0)}) == f"{expected % 2**64:016x}"
    changed = [{"a": words(5, 0), "b": words(3, 4)}, {"a": words(3, 4), "c": words(5, 0)}, {"a": words(3, 4)}]
    changed.append({"a": words(3, 4).view(torch.float64), "b": words(5, 0)})
    assert len({hash_of(one) for one in changed} - {hash_of({"a": words(3, 4), "b": words(5, 0)})}) == 4


def test_names_that_come_twice_and_empty_tensors_are_refused() -> None:
    with pytest.raises(WeightsError, match="a comes twice"):
        metas_of([("a", torch.ones(1)), ("a", torch.ones(1))])
    with pytest.raises(WeightsError, match="a is empty"):
        metas_of([("a", torch.ones(0))])


def test_parts_of_a_quantised_weight_may_arrive_in_different_pieces() -> None:
    restoring = Restoring(TENSORS, Nvfp4(), torch.bfloat16)
    assert [name for name, _ in restoring.take(list(TENSORS.items())[:3])] == ["norm"]
    rest = dict(restoring.take(list(TENSORS.items())[3:]))
    assert list(rest) == ["up.weight", "head"]
    whole = Nvfp4().dequantise(
        {name.removeprefix("up.weight"): part for name, part in QUANTISED.items()}, torch.bfloat16
    )
    assert torch.equal(rest["up.weight"], whole)


class Trainer:
    """vLLM's trainer, but for the network."""

    def __init__(self, source: Outgoing, calls: list[Any]) -> None:
        self.source, self.calls = source, calls
        calls.append("join")

    def send_weights(self) -> None:
        self.calls.append([name for name, _ in self.source])

    def shutdown(self) -> None:
        self.calls.append("leave")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What senders do, in order."""
    found: list[Any] = []
    monkeypatch.setattr(NcclSender, "_join", lambda self, outgoing: Trainer(outgoing, found))
    groups = iter(range(100))
    monkeypatch.setattr(nccl, "_group", lambda size: {"master_port": next(groups), "world_size": size})
    return found


def place(source: WeightSource | None) -> Broadcast:
    assert source is not None and isinstance(source.place, Broadcast)
    return source.place


def test_a_group_is_kept_until_an_engine_is_replaced(calls: list[Any]) -> None:
    sender, tensors = NcclSender(0, CPU), TENSORS.items
    first = sender.announce(1, tensors, None, [Listener(0, 2), Listener(1, 2)])
    assert [dict(place(source).init_info)["rank_offset"] for source in first] == [1, 3]
    assert place(first[0]).init_info["world_size"] == 5
    assert [meta.name for meta in place(first[0]).metas] == list(TENSORS)
    assert calls == []  # the engines are not told yet
    assert sender.send() == hash_of(TENSORS)
    again = sender.announce(2, tensors, None, [Listener(0, 2), Listener(1, 2)])
    sender.send()
    assert place(again[0]).key == place(first[0]).key
    assert calls == ["join", list(TENSORS), list(TENSORS)]
    (alone,) = sender.announce(2, tensors, None, [Listener(2, 2)])  # engine 1 was replaced
    sender.send()
    assert (place(alone).init_info["rank_offset"], place(alone).init_info["world_size"]) == (1, 3)
    sender.announce(3, tensors, None, [Listener(0, 2), Listener(2, 2)])
    sender.send()
    sender.close()
    assert calls[3:] == ["leave", "join", list(TENSORS), "leave", "join", list(TENSORS), "leave"]


def test_a_base_is_sent_once_to_a_group_after_the_adapter(calls: list[Any]) -> None:
    sender = NcclSender(0, CPU)
    adapter = {"w.lora_A": torch.ones(1, 2)}

    def announce(version: int, number: int) -> WeightSource:
        return sender.announce(version, adapter.items, TENSORS.items, [Listener(number, 1)])[0]

    source = announce(1, 0)
    assert sender.send() == f"{hash_of(adapter)}+{hash_of(TENSORS)}"
    assert [meta.name for meta in place(source.base).metas] == list(TENSORS)
    second = announce(2, 0)
    assert sender.send() == hash_of(adapter)
    assert second.base is not None and source.base is not None and second.base.hash == source.base.hash
    third = announce(2, 1)
    sender.send()
    assert third.base is not None and third.base.hash != source.base.hash  # a new group has not received it
    names = [list(adapter), list(TENSORS), list(adapter), "leave", "join", list(adapter), list(TENSORS)]
    assert calls == ["join", *names]


class Client:
    """Records vLLM's four calls; each of two cards answers with a hash."""

    def __init__(self, *hashes: str) -> None:
        self.calls: list[str] = []
        self.hashes = list(hashes)

    def init_weight_transfer_engine(self, init_info: Mapping[str, Any]) -> None:
        self.calls.append(f"init {init_info['rank_offset']}")

    def start_weight_update(self) -> None:
        self.calls.append("start")

    def update_weights(self, update_info: Mapping[str, Any]) -> None:
        self.calls.append(f"update {update_info['source'].version}")

    def finish_weight_update(self, weight_version: str) -> None:
        self.calls.append(f"finish {weight_version}")

    def loaded_hashes(self) -> list[str]:
        return self.hashes


def a_source(version: int, key: str) -> WeightSource:
    return WeightSource(version, Broadcast(key, {"rank_offset": 3}, ()), "")


def gpu_config(**sections: Any) -> Any:
    return make_config(weights="nccl", learner={"gpus": 1}, rollout={"gpus_per_worker": 2}, **sections)


def test_an_engine_joins_a_group_once_and_loads_in_the_order_of_vllm() -> None:
    client = Client("h", "h")
    loader = WeightLoader(gpu_config(), client)
    assert [loader.load(a_source(version, key)) for version, key in ((1, "a"), (2, "a"), (3, "b"))] == ["h"] * 3
    rounds = [["start", f"update {version}", f"finish {version}"] for version in (1, 2, 3)]
    assert client.calls == ["init 3", *rounds[0], *rounds[1], "init 3", *rounds[2]]
    client = Client("h", "i")
    with pytest.raises(EngineError, match="cards of the engine loaded different weights as version 1"):
        WeightLoader(gpu_config(), client).load(a_source(1, "a"))
    shared = Client("h", "h")
    WeightLoader(make_config(), shared).load(WeightSource(1, "path", "h"))
    assert shared.calls == rounds[0]  # nothing to join


def test_lost_weights_leave_an_engine_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(stored: object) -> None:
        raise ObjectLost("OwnerDiedError")

    client = Client("h", "h")
    monkeypatch.setattr(object_store, "fetch", lost)
    with pytest.raises(WeightsLost, match="version 1 cannot be fetched: OwnerDiedError"):
        WeightLoader(make_config(weights="object_store"), client).load(WeightSource(1, "", "h"))
    assert client.calls == []  # vLLM takes no other version after a beginning without an end


def learner_offers(source: WeightSource) -> Any:
    """A publication that the learner sends; `wait_together` is replaced in these tests."""
    sending: Any = SimpleNamespace(wait=lambda deadline: "sent")
    return SimpleNamespace(offer=lambda listeners: Offer([replace(source) for _ in listeners], [sending]))


def workers(log: list[str], num: int) -> list[Any]:
    def call(method: Callable[..., Any], source: WeightSource) -> Any:
        log.append(f"load {source.version}")
        return SimpleNamespace(wait=lambda deadline: "sent")

    return [(Listener(number, 1), SimpleNamespace(call=call)) for number in range(num)]


def test_engines_receive_while_the_learner_sends(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    monkeypatch.setattr(loading, "wait_together", lambda pending, deadline: log.append(f"wait for {len(pending)}"))
    source, answers = begin_loading(learner_offers(a_source(4, "a")), workers(log, 2), SOON)
    assert log == ["load 4", "load 4", "wait for 3"]  # the learner's one rank and two engines
    assert source.hash == "sent"
    check_hash(0, source, answers[0], SOON)
    with pytest.raises(loading.WeightHashError, match="engine 1 loaded weights with hash sent"):
        check_hash(1, replace(source, hash="other"), answers[1], SOON)


@pytest.mark.parametrize("error", [ActorDied("killed"), DeadlinePassed("publishing weights took longer than 120 s")])
def test_a_death_or_a_hang_while_weights_are_sent_counts_as_the_learners_death(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(pending: Sequence[Any], deadline: Deadline) -> None:
        raise error

    monkeypatch.setattr(loading, "wait_together", fail)
    with pytest.raises(WeightsLost, match=r"failed while weights were sent"):
        begin_loading(learner_offers(a_source(4, "a")), workers([], 1), SOON)


def test_a_learner_that_is_dead_when_a_worker_is_replaced_is_not_taken_for_the_worker() -> None:
    class Dead:
        def offer(self, listeners: Sequence[Listener]) -> Offer:
            raise ActorDied("killed")

    with pytest.raises(WeightsLost, match="the learner died before it could send weights: killed"):
        begin_loading(Dead(), workers([], 1), SOON)


@pytest.mark.parametrize(
    ("learner", "engine", "told"),
    [
        (0, 0, "there is none for the learner and an engine"),
        (1, 0, "there is none for an engine"),
        (0.5, 0.5, "cannot share one"),
        (1, 0.5, "cannot share one"),
    ],
)
def test_gpus_that_nccl_cannot_connect_are_refused(tmp_path: Path, learner: float, engine: float, told: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    config = make_config(
        weights="nccl",
        policy={"path": tmp_path},
        learner={"gpus": learner},
        rollout={"gpus_per_worker": engine},
    )
    with pytest.raises(ConfigError, match=rf"transport nccl cannot be used where learner\.gpus is {learner:g}.*{told}"):
        preflight(config)


def test_whole_gpus_are_accepted_and_reach_all_nodes() -> None:
    config = gpu_config()
    assert config.weights.fault([1, 1], [2]) == ""
    assert config.weights.reaches_all_nodes
    assert make_config().weights.fault([0], [0]) == ""


def test_engines_that_receive_over_nccl_use_the_network_device_of_the_learner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[str | None] = []
    monkeypatch.setattr("rl.cluster.network.choose_network_interface", chosen.append)
    monkeypatch.setitem(sys.modules, "rl.engine.vllm_core", SimpleNamespace(VllmEngine=lambda *given: None))  # type: ignore[arg-type]
    monkeypatch.setattr("rl.chat.chat.load_chat", lambda *given: None)
    for name in ("join_run_log", "Notes"):
        monkeypatch.setattr(f"rl.rollouts.worker.{name}", lambda *given: None)
    for transport, gpus in (("object_store", 0), ("nccl", 1)):
        rollout, ray = {"gpus_per_worker": gpus}, {"network_interface": "eth7"}
        config = make_config(tmp_path, weights=transport, learner={"gpus": gpus}, rollout=rollout, ray=ray)
        RolloutWorker(config, tmp_path)
    assert chosen == ["eth7"]
