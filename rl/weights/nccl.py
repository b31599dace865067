"""How does the learner send a policy version to the GPUs of all engines at once, over NCCL?

By vLLM's own trainer: the first rank broadcasts buffers of tensors to a group of itself and every engine's cards, while
the other ranks help to make the tensors whole. The driver tells the engines to receive at the same time
(`rl.rollouts.pool`). A group cannot change: when an engine is replaced, a new one is made for the next version.
"""

import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from rl.weights.broadcast import BUFFER_BYTES, Broadcast, Meta, Outgoing, Tensors, metas_of, rank_offsets
from rl.weights.source import BASE_VERSION, Listener, WeightSource

if TYPE_CHECKING:
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerWeightTransferEngine


class NcclSender:
    """The learner's end; every rank has one, and all call the same methods in the same order."""

    def __init__(self, rank: int, device: torch.device) -> None:
        self._rank, self._device = rank, device
        self._listeners: tuple[Listener, ...] | None = None
        self._key = ""
        self._group: dict[str, Any] = {}
        self._trainer: NCCLTrainerWeightTransferEngine | None = None
        self._metas: dict[bool, tuple[Meta, ...]] = {}
        self._next: list[Outgoing] = []

    def announce(
        self, version: int, policy: Tensors, base: Tensors | None, listeners: Sequence[Listener]
    ) -> list[WeightSource]:
        """What each engine needs in order to receive what `send` will send; only the first rank's result counts."""
        is_new = tuple(listeners) != self._listeners
        if is_new:
            self.close()
            self._listeners = tuple(listeners)
            self._key = uuid.uuid4().hex
            self._group = _group(1 + sum(one.num_cards for one in listeners)) if self._rank == 0 else {}
        self._next = [self._outgoing(policy, is_base=False)]
        if base is not None and is_new:  # after the version, as engines ask for it
            self._next.append(self._outgoing(base, is_base=True))
        offsets = rank_offsets([one.num_cards for one in listeners])
        return [self._source(version, offset, has_base=base is not None) for offset in offsets]

    def send(self) -> str:
        """Send what was announced last, and return its hash. Waits for all engines."""
        if self._device.type == "cuda":  # vLLM reads the weights on a stream of its own
            torch.cuda.synchronize(self._device)
        if self._trainer is None:
            self._trainer = self._join(self._next[0])
        for outgoing in self._next:
            self._trainer.source = outgoing  # type: ignore[assignment]
            self._trainer.send_weights()
        return "+".join(outgoing.checksum.hexdigest() for outgoing in self._next)

    def release(self) -> None:
        """Does nothing: nothing is kept for engines."""

    def close(self) -> None:
        """Leave the group."""
        if self._trainer is not None:
            self._trainer.shutdown()
        self._trainer = self._listeners = None

    def _outgoing(self, tensors: Tensors, *, is_base: bool) -> Outgoing:
        if is_base not in self._metas:  # the first time: names, dtypes and shapes are those of every version
            self._metas[is_base] = metas_of(tensors())
        return Outgoing(tensors, self._metas[is_base], self._device)

    def _source(self, version: int, rank_offset: int, *, has_base: bool) -> WeightSource:
        info = {**self._group, "rank_offset": rank_offset}
        base = None
        if has_base:  # engines of a new group receive it anew
            base = WeightSource(BASE_VERSION, Broadcast(self._key, info, self._metas.get(True, ())), self._key)
        return WeightSource(version, Broadcast(self._key, info, self._metas[False]), "", base=base)

    def _join(self, outgoing: Outgoing) -> "NCCLTrainerWeightTransferEngine":
        """Meet the engines; ranks other than the first only take part in sending."""
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo, NCCLTrainerWeightTransferEngine

        info = NCCLTrainerInitInfo(
            self._group.get("master_address", ""),
            self._group.get("master_port", 0),
            self._group.get("world_size", 0),
            packed_buffer_size_bytes=BUFFER_BYTES,
            packed_num_buffers=1,
            rank=self._rank,
        )
        return NCCLTrainerWeightTransferEngine.trainer_init(info, client=_CalledByDriver(), source=outgoing)  # type: ignore[arg-type]


class _CalledByDriver:
    """vLLM's trainer would call engines through this; here the driver has told them already, with its deadlines."""

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None: ...

    def start_weight_update(self) -> None: ...

    def update_weights(self, update_info: object) -> None: ...

    def finish_weight_update(self, weight_version: str | None = None) -> None: ...


def _group(world_size: int) -> dict[str, Any]:
    """A new group that meets on this machine, as vLLM's engines are told of it."""
    from rl.cluster.network import meeting_point

    host, _, port = meeting_point().rpartition(":")
    return {
        "master_address": host.strip("[]"),
        "master_port": int(port),
        "world_size": world_size,
        "packed": True,
        "packed_buffer_size_bytes": BUFFER_BYTES,
        # One buffer, and so one stream: what is loaded from one buffer may need tensors of the buffer before it.
        "packed_num_buffers": 1,
    }
