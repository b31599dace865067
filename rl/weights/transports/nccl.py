"""NCCL: the learner broadcasts each version to the GPUs of all engines (`rl.weights.nccl`)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from rl.weights.source import WeightSource
from rl.weights.transport import Connection, Room, Transport

if TYPE_CHECKING:
    import torch

    from rl.weights.nccl import NcclSender


class Nccl(Transport):
    """A broadcast from GPU to GPU over NCCL, by vLLM's own transfer. Learner and engines may be on any nodes; each rank
    and each engine needs whole GPUs of its own."""

    backend: ClassVar[str] = "polygym_nccl"
    transfer: ClassVar[tuple[str, str] | None] = ("rl.weights.vllm_broadcast", "BroadcastWeights")
    is_live: ClassVar[bool] = True
    reaches_all_nodes: ClassVar[bool] = True

    transport: Literal["nccl"] = "nccl"
    """Name of the transport."""

    def sender(self, rank: int, device: "torch.device") -> "NcclSender":
        from rl.weights.nccl import NcclSender

        return NcclSender(rank, device)

    def connection(self, source: WeightSource) -> Connection:
        from rl.weights.broadcast import Broadcast

        assert isinstance(source.place, Broadcast)
        return Connection(source.place.key, source.place.init_info)

    def fault(self, ranks: Sequence[float], engines: Sequence[float]) -> str:
        without = [name for name, gpus in (("the learner", ranks), ("an engine", engines)) if not min(gpus)]
        if without:
            return f"it carries weights from GPU to GPU, and there is none for {' and '.join(without)}"
        if min(*ranks, *engines) < 1:
            return "a GPU can have only one place in an NCCL group, so ranks and engines cannot share one"
        return ""

    def room(self, num_bytes: float) -> Room:
        from rl.weights.broadcast import BUFFER_BYTES

        return Room(learner=2 * BUFFER_BYTES, engine=2 * BUFFER_BYTES)
