"""Where does a published policy version lie? What the learner gives and every engine is given."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WeightSource:
    """Where a published policy version lies: a shared-memory file and what is in it (`rl.weights.shared_memory`)."""

    version: int
    path: str
    hash: str


class WeightsError(ValueError):
    """A published file of weights is not what it should be."""
