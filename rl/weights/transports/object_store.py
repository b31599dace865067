"""Object store: one array in Ray's object store, which each node copies once (`rl.weights.object_store`)."""

from typing import TYPE_CHECKING, ClassVar, Literal

from rl.weights.source import WeightSource
from rl.weights.transport import Received, Room, Transport

if TYPE_CHECKING:
    from rl.weights.object_store import ObjectStorePublisher


class ObjectStore(Transport):
    """One array in Ray's object store; learner and engines may run on any nodes."""

    uses_object_store: ClassVar[bool] = True
    reaches_all_nodes: ClassVar[bool] = True

    transport: Literal["object_store"] = "object_store"
    """Name of the transport."""

    def publisher(self) -> "ObjectStorePublisher":
        from rl.weights.object_store import ObjectStorePublisher

        return ObjectStorePublisher()

    def fetched(self, source: WeightSource) -> WeightSource:
        from rl.weights.object_store import fetched

        return fetched(source)

    def receive(self, source: WeightSource) -> Received:
        from rl.weights.object_store import read_fetched

        return read_fetched(source)

    def room(self, num_bytes: float) -> Room:
        return Room(host=super().room(num_bytes).host + num_bytes)  # and the learner's own block
