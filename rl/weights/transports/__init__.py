"""Which transports of weights can a configuration name? One file each, registered in `TRANSPORTS`."""

from typing import Annotated

from rl.config.section import OneOf
from rl.weights.transport import Transport
from rl.weights.transports.ipc import Ipc
from rl.weights.transports.nccl import Nccl
from rl.weights.transports.object_store import ObjectStore
from rl.weights.transports.shared_memory import SharedMemory

TRANSPORTS: dict[str, type[Transport]] = {
    "ipc": Ipc,
    "nccl": Nccl,
    "object_store": ObjectStore,
    "shared_memory": SharedMemory,
}
AnyTransport = Annotated[Transport, OneOf(TRANSPORTS, "transport", "object_store")]
"""Type of a key that holds the section of one of these transports."""
