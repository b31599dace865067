"""The transports of weights by the names that a configuration gives them: one file each."""

from typing import Annotated

from rl.config.section import OneOf
from rl.weights.transport import Transport
from rl.weights.transports.shared_memory import SharedMemory

TRANSPORTS: dict[str, type[Transport]] = {"shared_memory": SharedMemory}
AnyTransport = Annotated[Transport, OneOf(TRANSPORTS, "transport", "shared_memory")]
"""A key that holds the section of one of them."""
