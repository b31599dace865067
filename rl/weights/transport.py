"""What carries a published policy version from the learner to the engines?"""

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol

from rl.config.section import Section
from rl.weights.source import WeightSource

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor


class Received(NamedTuple):
    """Names and tensors of a published version, and the hash of the bytes they lie in."""

    tensors: "list[tuple[str, Tensor]]"
    hash: str


class Publisher(Protocol):
    """The learner's end of a transport."""

    def publish(self, tensors: "Iterable[tuple[str, Tensor]]", version: int) -> WeightSource:
        """Put `tensors` (names and layout of the checkpoint) as `version` where engines can receive them.

        Raises `WeightsError` when a name comes twice or a tensor is empty, and `OSError` when there is no room.
        """
        ...

    def forget(self, source: WeightSource) -> None:
        """Free a version, once every engine has acknowledged it or a newer one. Idempotent."""
        ...

    def close(self) -> None:
        """Free all versions; for processes that are about to be killed and so will not clean up."""
        ...


class Transport(Section):
    """How published weights travel from the learner to the engines.

    To add one: a subclass in a file of its own, with its keys (`transport: Literal["name"] = "name"` among them), and a
    line of `rl.weights.transports.TRANSPORTS`. Import torch, Ray and vLLM inside of methods only: a configuration is
    read without them.
    """

    backend: ClassVar[str] = "polygym"
    """The weight transfer that engines use, by its name in vLLM's factory."""
    transfer: ClassVar[tuple[str, str] | None] = ("rl.weights.vllm_transfer", "ReceivedWeights")
    """Module and class to register under that name; this one calls `receive`. None for transfers that vLLM brings."""

    @property
    def name(self) -> str:
        """What the configuration calls it."""
        return str(type(self).model_fields["transport"].default)

    def publisher(self) -> Publisher:
        raise NotImplementedError

    def receive(self, source: WeightSource) -> Received:
        """The tensors of a published version, in an engine's process.

        Raises `WeightsError` when they are not what the learner published.
        """
        raise NotImplementedError

    def check_room(self, policy: "Path", bytes_per_number: int) -> None:
        """Raise `ClusterError` where versions of the policy of this folder cannot be held, before processes start."""

    def reaches(self, nodes: Collection[str]) -> bool:
        """Whether learner and engines may be spread over these nodes (Ray's ids)."""
        raise NotImplementedError
