"""In which form do tensors of a policy version travel between GPUs, to which ranks, and what proves that they arrived?

Each tensor travels as its bytes, padded to a multiple of 16, so that tensors of any dtype can lie one after the other
in one buffer. The hash combines names, dtypes, shapes, and a sum over each tensor's bytes, 8 at a time, computed on its
device.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import torch
import xxhash
from torch import Tensor

from rl.weights.source import WeightsError

Tensors = Callable[[], Iterable[tuple[str, Tensor]]]
"""What makes the tensors of a version, each time that they are needed."""
BUFFER_BYTES = 2**28
"""Of one exchange. Learner and engines need it twice."""
_ALIGNMENT = 16
_FACTOR = 1_000_003
"""Makes the hash depend on the order of tensors. Products wrap around in 64 bits, on any device alike."""


class Meta(NamedTuple):
    """A tensor before it arrives."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return torch.Size(self.shape).numel() * getattr(torch, self.dtype).itemsize

    @property
    def num_wire_bytes(self) -> int:
        return self.num_bytes + -self.num_bytes % _ALIGNMENT


@dataclass(frozen=True, slots=True)
class Broadcast:
    """The place of a version that the learner sends to a group of processes: itself, and one for each card."""

    key: str
    """Of the group; no other group has it."""
    init_info: Mapping[str, Any]
    """What vLLM's transfer needs to join the group."""
    metas: tuple[Meta, ...]

    @property
    def updates(self) -> Sequence[Mapping[str, Any]]:
        """What vLLM's transfer needs to receive the tensors, call by call."""
        return [
            {
                "names": [meta.name for meta in self.metas],
                "dtype_names": ["uint8"] * len(self.metas),
                "shapes": [[meta.num_wire_bytes] for meta in self.metas],
            }
        ]


def rank_offsets(num_cards: Sequence[int]) -> list[int]:
    """The rank of each engine's first card. Rank 0 is the learner; an engine has a rank for each card."""
    return list(accumulate(num_cards, initial=1))[:-1]


def metas_of(tensors: Iterable[tuple[str, Tensor]]) -> tuple[Meta, ...]:
    """Raises `WeightsError` for a duplicate name or an empty tensor."""
    metas: dict[str, Meta] = {}
    for name, tensor in tensors:
        if name in metas or not tensor.numel():
            raise WeightsError(f"tensor {name} {'comes twice' if name in metas else 'is empty'}")
        metas[name] = Meta(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
    return tuple(metas.values())


def to_wire(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor's bytes, padded with zeros: uint8 [num_wire_bytes]."""
    flat = tensor.detach().to(device).contiguous().flatten().view(torch.uint8)
    return torch.nn.functional.pad(flat, (0, padding)) if (padding := -len(flat) % _ALIGNMENT) else flat


def from_wire(wire: Tensor, meta: Meta) -> Tensor:
    """The tensor, as a view of its bytes."""
    return wire[: meta.num_bytes].view(getattr(torch, meta.dtype)).view(meta.shape)


class Checksum:
    """The hash of a version, to which tensors are added in their order."""

    def __init__(self, metas: Sequence[Meta]) -> None:
        words = xxhash.xxh3_64_digest(repr([tuple(meta) for meta in metas]).encode())
        self._total = torch.tensor(int.from_bytes(words, "little", signed=True))

    def add(self, wire: Tensor) -> None:
        self._total = self._total.to(wire.device) * _FACTOR + wire.view(torch.int64).sum()

    def hexdigest(self) -> str:
        """Waits for the device."""
        return f"{int(self._total.item()) % 2**64:016x}"


@dataclass(slots=True)
class _WireMeta:
    """As vLLM's trainer wants to be told of a tensor."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


class Outgoing:
    """The tensors of a version on the learner's end, as vLLM's trainer takes them (its `WeightSource`)."""

    def __init__(self, tensors: Tensors, metas: Sequence[Meta], device: torch.device) -> None:
        self._tensors, self._metas, self._device = tensors, metas, device
        self.checksum = Checksum(metas)

    def metadata(self) -> list[_WireMeta]:
        return [_WireMeta(meta.name, torch.uint8, (meta.num_wire_bytes,)) for meta in self._metas]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Of a policy that is spread over ranks all ranks must take all tensors."""
        self.checksum = Checksum(self._metas)
        for name, tensor in self._tensors():
            wire = to_wire(tensor, self._device)
            self.checksum.add(wire)
            yield name, wire


class Incoming:
    """The tensors of a version on an engine's end: vLLM's transfer takes it for the model that it loads."""

    def __init__(self, metas: Sequence[Meta], take: Callable[[Sequence[tuple[str, Tensor]]], object]) -> None:
        """`take` gets the tensors piece by piece. They are views of a buffer, which stays as it is."""
        self._metas, self._take = {meta.name: meta for meta in metas}, take
        self.checksum = Checksum(metas)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        piece = []
        for name, wire in weights:
            self.checksum.add(wire)
            piece.append((name, from_wire(wire, self._metas[name])))
        self._take(piece)
