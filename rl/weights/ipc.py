"""How does an engine on the learner's own GPU get a policy version? It maps buffers of the learner, through CUDA IPC.

The learner packs the version into buffers, a copy beside the policy, and frees them when the engine has loaded it.
"""

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rl.weights.broadcast import BUFFER_BYTES, Broadcast, Outgoing, Tensors, metas_of
from rl.weights.source import BASE_VERSION, Listener, WeightSource


@dataclass(frozen=True, slots=True)
class OnCard(Broadcast):
    """The place of a version in buffers on the card."""

    buffers: tuple[Mapping[str, Any], ...] = ()

    @property
    def updates(self) -> Sequence[Mapping[str, Any]]:
        return self.buffers


class IpcSender:
    """The learner's end. An exported buffer can be opened once, so there is one engine."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._listeners: tuple[Listener, ...] | None = None
        self._key = ""
        self._buffers: list[Tensor] = []
        self._hashes: list[str] = []

    def announce(
        self, version: int, policy: Tensors, base: Tensors | None, listeners: Sequence[Listener]
    ) -> list[WeightSource]:
        """What the engine maps. An adapter's base is there only for an engine that has not received it."""
        self.release()
        is_new = tuple(listeners) != self._listeners
        if is_new:
            self._listeners, self._key = tuple(listeners), uuid.uuid4().hex
        self._hashes = []
        place = self._export(policy)
        below = None
        if base is not None:
            below_place = self._export(base) if is_new else OnCard(self._key, {}, ())
            below = WeightSource(BASE_VERSION, below_place, self._key)
        return [WeightSource(version, place, "", base=below) for _ in listeners]

    def send(self) -> str:
        """Does nothing more; the hash of what was announced."""
        return "+".join(self._hashes)

    def release(self) -> None:
        """Free the buffers: the engine has loaded them."""
        self._buffers.clear()
        if self._device.type == "cuda":
            torch.cuda.ipc_collect()

    def close(self) -> None:
        self.release()

    def _export(self, tensors: Tensors) -> OnCard:
        metas = metas_of(tensors())
        outgoing = Outgoing(tensors, metas, self._device)
        buffers = [self._exported(piece) for piece in _pieces(outgoing)]
        self._hashes.append(outgoing.checksum.hexdigest())
        return OnCard(self._key, {"packed": True}, metas, tuple(buffers))

    def _exported(self, piece: Sequence[tuple[str, Tensor]]) -> Mapping[str, Any]:
        """One buffer, as vLLM's transfer is told of it."""
        sizes = [len(wire) for _, wire in piece]
        buffer = torch.cat([wire for _, wire in piece])
        self._buffers.append(buffer)
        return {
            "names": [name for name, _ in piece],
            "dtype_names": ["uint8"] * len(piece),
            "shapes": [[size] for size in sizes],
            "tensor_sizes": sizes,
            "ipc_handles": _handle(buffer),
        }


def _pieces(tensors: Outgoing) -> Iterator[list[tuple[str, Tensor]]]:
    """Tensors that share a buffer: as many as reach `BUFFER_BYTES`."""
    piece: list[tuple[str, Tensor]] = []
    for name, wire in tensors:
        piece.append((name, wire))
        if sum(len(one) for _, one in piece) >= BUFFER_BYTES:
            yield piece
            piece = []
    if piece:
        yield piece


def _handle(buffer: Tensor) -> dict[str, Any]:
    """How another process maps the buffer, by the card's unique id."""
    from torch.multiprocessing.reductions import reduce_tensor

    torch.cuda.synchronize(buffer.device)  # the other process does not wait for this one's streams
    return {str(torch.cuda.get_device_properties(buffer.device).uuid): reduce_tensor(buffer)[1]}
