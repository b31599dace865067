"""Where does a published policy version lie? What the learner gives and every engine is given."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WeightSource:
    """Where a published policy version lies, and what its bytes hash to."""

    version: int
    place: object
    """In the terms of the transport, such as the path of a file."""
    hash: str


class WeightsError(ValueError):
    """Published weights are not what they should be."""
