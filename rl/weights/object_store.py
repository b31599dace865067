"""How do the weights of a policy version reach engines on all nodes? As one array in Ray's object store.

The learner stores it once, each node copies it once, and all engines of a node map that copy. `rl.weights.flat` defines
its bytes. A version exists as long as somebody holds its source.
"""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch

from rl.cluster.objects import ObjectLost, fetch, store
from rl.weights.flat import read_flat, write_flat
from rl.weights.source import WeightsLost, WeightSource
from rl.weights.transport import Received


class ObjectStorePublisher:
    """The learner's end. It keeps the block of the last version, because fresh memory takes longer than the copies."""

    def __init__(self) -> None:
        self._block = bytearray()
        self._end = 0

    def publish(self, tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> WeightSource:
        self._end = 0
        digest = write_flat(self._write, tensors, version)
        source = WeightSource(version, store(np.frombuffer(self._block, np.uint8, self._end)), digest)
        if 2 * self._end < len(self._block):  # of an adapter's base, which is published once
            self._block = bytearray()
        return source

    def _write(self, data: memoryview) -> None:
        end = self._end + len(data)
        if end <= len(self._block):
            memoryview(self._block)[self._end : end] = data
        else:
            del self._block[self._end :]
            self._block.extend(data)
        self._end = end

    def forget(self, source: WeightSource) -> None:
        """Does nothing: the caller drops the source."""

    def close(self) -> None:
        """Does nothing: what this process stored ends with it."""


def fetched(source: WeightSource) -> WeightSource:
    """The same version, its place being the array itself. Raises `WeightsLost`."""
    base = fetched(source.base) if source.base is not None else None
    try:
        return replace(source, place=fetch(source.place), base=base)
    except ObjectLost as error:
        raise WeightsLost(f"the weights of version {source.version} cannot be fetched: {error}") from error


def read_fetched(source: WeightSource) -> Received:
    """The tensors of a version that `fetched` returned. Raises `WeightsError`."""
    assert isinstance(source.place, np.ndarray), f"version {source.version} was not fetched"
    return read_flat(source.place, source, "the object store")
