"""Shared memory: a file in /dev/shm that all engines on the node map (`rl.weights.shared_memory`)."""

from typing import TYPE_CHECKING, Literal

from rl.weights.source import WeightSource
from rl.weights.transport import Received, Transport

if TYPE_CHECKING:
    from rl.weights.shared_memory import SharedMemoryPublisher


class SharedMemory(Transport):
    """A file in shared memory; learner and engines must run on one node. Some milliseconds faster than the object store
    for policies of a few MB, slower for larger ones, and usable without a Ray cluster."""

    transport: Literal["shared_memory"] = "shared_memory"
    """Name of the transport."""

    def publisher(self) -> "SharedMemoryPublisher":
        from rl.weights.shared_memory import SharedMemoryPublisher

        return SharedMemoryPublisher()

    def receive(self, source: WeightSource) -> Received:
        from rl.weights.shared_memory import read_weights

        return read_weights(source)

    def check_room(self, num_bytes: int) -> None:
        from rl.cluster.shared_memory import check_shared_memory

        check_shared_memory(num_bytes)
