"""Where are the weights of a published policy version, and what is their hash?"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WeightSource:
    """The place and the hash of a published policy version: what the learner hands to every engine."""

    version: int
    place: object
    """Defined by the transport, such as the path of a file."""
    hash: str
    epoch: int = 0
    """How often the learner had died before it published this: it goes on from a checkpoint, so its versions begin at
    lower numbers again, and yet are newer than all of an earlier epoch."""
    base: "WeightSource | None" = None
    """If these are only an adapter's matrices: the weights that engines merge them into, published once."""


BASE_VERSION = -1
"""The version under which an adapter's base is published: it is no policy of its own."""


class WeightsError(ValueError):
    """Published weights are damaged, incomplete or of another version."""
