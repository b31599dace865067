"""How do the tensors of a policy version become one block of bytes with an index and a hash, and tensors again?

Each tensor's bytes at a multiple of 64, then an index (JSON: version, and each tensor's name, dtype, shape and offset),
then the index's length in 8 bytes. The hash (xxh3, 64 bits) covers every byte.
"""

import json
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
import xxhash

from rl.weights.source import WeightsError, WeightSource
from rl.weights.transport import Received

_ALIGNMENT = 64
_LENGTH_BYTES = 8
_CHUNK_BYTES = 1 << 20
"""Small enough that the hash reads what the copy has just brought into the cache."""


def write_flat(write: Callable[[memoryview], Any], tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> str:
    """Pass all bytes to `write`, piece by piece, and return their hash.

    Raises `WeightsError` for a duplicate name or an empty tensor.
    """
    digest = xxhash.xxh3_64()

    def take(data: memoryview) -> None:
        for start in range(0, len(data), _CHUNK_BYTES):
            chunk = data[start : start + _CHUNK_BYTES]
            digest.update(chunk)
            write(chunk)

    entries: dict[str, list[object]] = {}
    offset = 0
    for name, tensor in tensors:
        if name in entries or not tensor.numel():
            raise WeightsError(f"tensor {name} {'comes twice' if name in entries else 'is empty'}")
        entries[name] = [name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape), offset]
        take(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        padding = -tensor.nbytes % _ALIGNMENT
        take(memoryview(bytes(padding)))
        offset += tensor.nbytes + padding
    index = json.dumps({"version": version, "tensors": list(entries.values())}).encode()
    take(memoryview(index + len(index).to_bytes(_LENGTH_BYTES, "little")))
    return digest.hexdigest()


def read_flat(block: np.ndarray, source: WeightSource, where: str) -> Received:
    """The tensors in a block of bytes (uint8), without copying; they keep its memory alive and must not be written to.

    Raises `WeightsError` when the bytes do not hash to `source.hash`, or hold another version.
    """
    found = xxhash.xxh3_64_hexdigest(block.data)
    if found != source.hash:
        raise WeightsError(
            f"the weights of version {source.version} at {where} hash to {found}, but {source.hash} was published:"
            f" the {len(block):,} bytes there are damaged or cut off; publish the version again"
        )
    end = len(block) - _LENGTH_BYTES
    index = json.loads(block[end - int.from_bytes(block[end:].tobytes(), "little") : end].tobytes())
    if index["version"] != source.version:
        raise WeightsError(f"{where} holds version {index['version']}, not {source.version}")
    memory = torch.from_dlpack(block)  # unlike other ways, without a warning about read-only memory
    return Received([(entry[0], _view(memory, *entry[1:])) for entry in index["tensors"]], found)


def _view(memory: torch.Tensor, dtype: str, shape: list[int], offset: int) -> torch.Tensor:
    kind: torch.dtype = getattr(torch, dtype)
    return memory[offset : offset + torch.Size(shape).numel() * kind.itemsize].view(kind).view(shape)
