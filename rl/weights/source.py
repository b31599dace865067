"""Where are the weights of a published policy version, what is their hash, and how are they offered to engines?"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from rl.cluster.actors import Pending


class Listener(NamedTuple):
    """An engine that is to load a version."""

    number: int
    """Of no other engine of the run, nor of one that this engine replaces."""
    num_cards: int


@dataclass(frozen=True, slots=True)
class WeightSource:
    """The place and the hash of a published policy version: what the learner hands to every engine."""

    version: int
    place: object
    """Defined by the transport, such as the path of a file."""
    hash: str
    """Empty of a version that is sent while engines receive: the learner knows it afterwards."""
    epoch: int = 0
    """How often the learner had died before it published this: it goes on from a checkpoint, so its versions begin at
    lower numbers again, and yet are newer than all of an earlier epoch."""
    base: "WeightSource | None" = None
    """If these are only an adapter's matrices: the weights that engines merge them into, published once."""

    def offer(self, listeners: Sequence[Listener]) -> "Offer":
        """Implements `Publication`: any engine can load it from its place at any time."""
        return Offer([self] * len(listeners))


@dataclass(frozen=True, slots=True)
class Offer:
    """A version on its way to engines."""

    sources: Sequence[WeightSource]
    """What each engine loads."""
    sending: "Sequence[Pending[str]]" = ()
    """The ranks of the learner, if they send while the engines receive; each returns the hash of what it sent."""
    done: Callable[[], object] = lambda: None
    """To be called when all engines have loaded it."""


class Publication(Protocol):
    """A policy version that is published, or that the learner sends to engines when it is offered to them."""

    def offer(self, listeners: Sequence[Listener]) -> Offer: ...


BASE_VERSION = -1
"""The version under which an adapter's base is published: it is no policy of its own."""


class WeightsError(ValueError):
    """Published weights are damaged, incomplete or of another version."""


class WeightsLost(WeightsError):
    """Published weights can be had nowhere any more: the process that published them is lost, or one that they were
    sent to. The learner must start again."""
