"""How are several checks combined into one reward? As named weighted parts that sum to it, with gates and bounds."""

import math
from collections.abc import Collection, Mapping


class Rubric:
    """Weights by name. `rubric(scores)` returns what each part adds to the reward; the parts sum to it.

    Scores are in [0, 1]. Weights may be negative, for penalties. If the score of a gate is not 1, no positive part
    counts. A part named `clipped` brings a total outside `bounds` back into them. If the weights sum to 1 and none is
    a penalty, the total is in [0, 1], and exactly 1 if every score is 1.
    """

    def __init__(
        self, weights: Mapping[str, float], gates: Collection[str] = (), bounds: tuple[float, float] | None = None
    ) -> None:
        unknown = set(gates) - set(weights)
        if unknown:
            raise ValueError(f"gate {min(unknown)!r} has no weight; weights: {', '.join(weights)}")
        self._weights = dict(weights)
        self._gates = frozenset(gates)
        self._bounds = bounds

    def __call__(self, scores: Mapping[str, float]) -> dict[str, float]:
        """Raises `ValueError` if the names are not those of the weights, or if a score is outside of [0, 1]."""
        if set(scores) != set(self._weights):
            raise ValueError(
                f"scores name {sorted(scores)}, weights name {sorted(self._weights)}: they must be the same"
            )
        for name, score in scores.items():
            if not 0.0 <= score <= 1.0:
                raise ValueError(f"score {name!r} must be in [0, 1], got {score}")
        shut = any(scores[gate] != 1.0 for gate in self._gates)
        parts = {name: 0.0 if shut and weight > 0 else weight * scores[name] for name, weight in self._weights.items()}
        return self._clipped(parts)

    def _clipped(self, parts: dict[str, float]) -> dict[str, float]:
        if self._bounds is None:
            return parts
        total = math.fsum(parts.values())
        return {**parts, "clipped": min(max(total, self._bounds[0]), self._bounds[1]) - total}
