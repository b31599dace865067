"""How near is a judge's comparison of two replies to what people said? The reward that trains a GenRM.

Nemotron 3 Nano, section 3.3 (arXiv:2512.20848): R = -C1 I - |P_h1 - G_h1| - |P_h2 - G_h2| - C2 |P_r - G_r|, with
C1 = 10 and C2 = 1. P is the predicted and G the given: helpfulness h of each reply, from 1 to 5, and the ranking r,
from 1 (the first is much better) to 6. I is 1 if the comparison has not the form that was asked for; then there is no
P, and the other terms are 0. So the worst reward is -13, of a readable comparison that is as wrong as can be.
"""

from rewards.judge import Comparison, JudgeError, read_comparison

FORMAT_COST = 10.0
RANKING_COST = 1.0
WORST = -13.0
NUM_RANKS = 6


def preference_reward(text: str, ranking: int, scores: tuple[int, int] | None = None) -> dict[str, float]:
    """Reward parts, at most 0: `format`, `helpfulness`, `ranking`. Without given `scores` only the ranking counts."""
    try:
        said = read_comparison(text)
    except JudgeError:
        return {"format": -FORMAT_COST, "helpfulness": 0.0, "ranking": 0.0}
    distance = abs(said.first - scores[0]) + abs(said.second - scores[1]) if scores else 0
    return {
        "format": 0.0,
        "helpfulness": 0.0 - distance,
        "ranking": 0.0 - RANKING_COST * abs(said.ranking - ranking),
    }


def swapped(comparison: Comparison) -> Comparison:
    """The same verdict on the two replies in the other order."""
    return Comparison(comparison.second, comparison.first, NUM_RANKS + 1 - comparison.ranking)
