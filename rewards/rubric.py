"""How do several checks become one reward? Named weighted parts that sum to the total."""

import math
from collections.abc import Mapping


def weigh(scores: Mapping[str, float], weights: Mapping[str, float]) -> tuple[float, dict[str, float]]:
    """The total and what each part adds to it; the parts sum to the total.

    `scores` and `weights` have the same names, scores lie in [0, 1]. With weights that sum to 1 the total is in [0, 1],
    and it is exactly 1 when every score is. Raises `ValueError` for other names or a score outside of [0, 1].
    """
    if set(scores) != set(weights):
        raise ValueError(f"scores name {sorted(scores)}, weights name {sorted(weights)}: give both the same names")
    for name, score in scores.items():
        if not 0.0 <= score <= 1.0:
            raise ValueError(f"score {name!r} must be in [0, 1], got {score}")
    parts = {name: weights[name] * scores[name] for name in weights}
    return math.fsum(parts.values()), parts
