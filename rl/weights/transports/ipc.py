"""CUDA IPC: an engine on the learner's GPU maps each version there (`rl.weights.ipc`)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from rl.weights.source import WeightSource
from rl.weights.transport import Connection, Room, Transport

if TYPE_CHECKING:
    import torch

    from rl.weights.ipc import IpcSender


class Ipc(Transport):
    """Through CUDA IPC, for one learner and one engine that share a GPU: weights never leave it. A copy of a version
    lies beside the policy while it is loaded."""

    backend: ClassVar[str] = "polygym_ipc"
    transfer: ClassVar[tuple[str, str] | None] = ("rl.weights.vllm_broadcast", "SharedCardWeights")
    is_live: ClassVar[bool] = True

    transport: Literal["ipc"] = "ipc"
    """Name of the transport."""

    def sender(self, rank: int, device: "torch.device") -> "IpcSender":
        from rl.weights.ipc import IpcSender

        return IpcSender(device)

    def connection(self, source: WeightSource) -> Connection:
        from rl.weights.broadcast import Broadcast

        assert isinstance(source.place, Broadcast)
        return Connection(source.place.key, source.place.init_info)

    def fault(self, ranks: Sequence[float], engines: Sequence[float]) -> str:
        if len(ranks) > 1 or len(engines) > 1:
            return "it connects one rank and one engine"
        if not 0 < ranks[0] < 1 or not 0 < engines[0] < 1 or ranks[0] + engines[0] > 1:
            return "both must have a part of one GPU"
        return ""

    def room(self, num_bytes: float) -> Room:
        return Room(learner=num_bytes)
