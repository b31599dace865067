"""What must a transport of weights implement to carry a published policy version from the learner to the engines?"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

from rl.config.section import Section
from rl.weights.source import Listener, WeightSource

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from rl.weights.broadcast import Tensors


class Received(NamedTuple):
    """Names and tensors of a published version, and the hash of their bytes."""

    tensors: "list[tuple[str, Tensor]]"
    hash: str


class Publisher(Protocol):
    """The learner's end of a transport."""

    def publish(self, tensors: "Iterable[tuple[str, Tensor]]", version: int) -> WeightSource:
        """Publish `tensors` (names and layout of the checkpoint) as `version`, so that engines can receive them.

        Raises `WeightsError` for a duplicate name or an empty tensor, and `OSError` if there is no room.
        """
        ...

    def forget(self, source: WeightSource) -> None:
        """Free a version after every engine has acknowledged it or a newer one. Idempotent."""
        ...

    def close(self) -> None:
        """Free all versions. Called before a process is killed, because it will not clean up itself."""
        ...


class Sender(Protocol):
    """The learner's end of a transport that sends while engines receive. Every rank has one, and all call the same
    methods in the same order."""

    def announce(
        self, version: int, policy: "Tensors", base: "Tensors | None", listeners: Sequence[Listener]
    ) -> list[WeightSource]:
        """What each engine is to load; the result of the first rank counts. `base` is what an adapter is merged into.

        Raises `WeightsError` for a duplicate name or an empty tensor.
        """
        ...

    def send(self) -> str:
        """Send what was announced last, while the engines load it; returns its hash."""
        ...

    def release(self) -> None:
        """Free what was kept for the engines: all have loaded it."""
        ...

    def close(self) -> None: ...


class Connection(NamedTuple):
    """What an engine must join before it can load a version."""

    key: str
    init_info: Mapping[str, Any]
    """For `init_weight_transfer_engine` of vLLM."""


class Room(NamedTuple):
    """Bytes that a transport takes while it carries versions."""

    host: float = 0.0
    """On the host of the learner's first rank."""
    learner: float = 0.0
    """On the card of that rank."""
    engine: float = 0.0
    """On each card of an engine."""


class Transport(Section):
    """How published weights travel from the learner to the engines.

    To add a transport, write a subclass in its own file with its keys, one of which is
    `transport: Literal["name"] = "name"`, and add it to `rl.weights.transports.TRANSPORTS`. Import torch, Ray and vLLM
    only inside methods, because configurations are read without them.
    """

    backend: ClassVar[str] = "polygym"
    """Name of the engines' weight transfer in vLLM's factory."""
    transfer: ClassVar[tuple[str, str] | None] = ("rl.weights.vllm_transfer", "ReceivedWeights")
    """Module and class to register under that name; the default one calls `receive`. None for vLLM's own transfers."""
    uses_object_store: ClassVar[bool] = False
    """Whether published versions lie in Ray's object store, which must then be large enough."""
    reaches_all_nodes: ClassVar[bool] = False
    """Whether learner and engines may be on different nodes."""

    is_live: ClassVar[bool] = False
    """Whether the learner sends while engines receive (`sender`). Otherwise it publishes (`publisher`), and engines
    `receive` at any time."""

    @property
    def name(self) -> str:
        """Its name in the configuration."""
        return str(type(self).model_fields["transport"].default)

    def publisher(self) -> Publisher:
        raise NotImplementedError

    def fetched(self, source: WeightSource) -> WeightSource:
        """Bring a published version to this process; called in the engine's own process, which belongs to the cluster.

        The result is passed to the processes of the engine's cards, which may not. Raises `WeightsLost`.
        """
        return source

    def sender(self, rank: int, device: "torch.device") -> Sender:
        """For a rank of the learner, whose weights are on this device."""
        raise NotImplementedError

    def connection(self, source: WeightSource) -> Connection | None:
        """What an engine must have joined to load this version; None if nothing."""
        return None

    def receive(self, source: WeightSource) -> Received:
        """The tensors of a version that was `fetched`; called in each process of an engine.

        Raises `WeightsError` if they are not what the learner published.
        """
        raise NotImplementedError

    def fault(self, ranks: Sequence[float], engines: Sequence[float]) -> str:
        """Why it cannot work where the learner's ranks and the engines reserve so many GPUs each; empty if it can."""
        return ""

    def room(self, num_bytes: float) -> Room:
        """What versions of so many bytes take; unless it says otherwise, memory of the host."""
        from rl.cluster.shared_memory import NUM_VERSIONS

        return Room(host=NUM_VERSIONS * num_bytes)

    def check_room(self, num_bytes: int) -> None:
        """Raise `ClusterError` if there is no room for so many published bytes; called before processes start."""
