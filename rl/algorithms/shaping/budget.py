"""Rewards that depend on the thinking budget: a rollout that thinks for less, or for as long as it was told, gains.

L1, https://arxiv.org/abs/2503.04697, with n tokens of reasoning and a budget of b. LCPO-Max, equation 2: the reward is
multiplied by clip(alpha * (b - n) + 0.5, 0, 1). LCPO-Exact, equation 1: alpha * |b - n| is subtracted.
"""

import math
from typing import Annotated, Literal

from pydantic import Field

from rl.algorithms.shaping.shaping import Rewards, Shaping, thinking_tokens
from rl.data_types import Group, Rollout

DELTA = 0.5
"""Factor of a rollout that thinks for exactly its budget."""


class BudgetKept(Shaping):
    """Rollouts of tasks whose thinking budget is a number of tokens are paid by how they keep it; others are left as
    they are.

    The budget is one reply's, so the reasoning that counts is that of a reply on average. Tokens are divided between
    reasoning and answer, tool calls included, by their characters.
    """

    shaping: Literal["budget"] = "budget"
    """Name of the shaping."""
    aim: Literal["max", "exact"] = "max"
    """`max` multiplies the reward by a factor from 0 to 1, which falls as the reasoning nears the budget and goes
    beyond; `exact` subtracts what the reasoning differs from the budget."""
    alpha: Annotated[float, Field(gt=0)] = 0.01
    """Of the factor, or of the reward, for each token of difference."""

    @property
    def multiplies(self) -> bool:
        return self.aim == "max"

    @property
    def most_subtracted(self) -> float:
        return math.inf if self.aim == "exact" else 0.0

    def shape(self, group: Group) -> Rewards:
        budget = group.task.budget
        if not isinstance(budget, int):
            return tuple(one.reward for one in group.rollouts)
        return tuple(None if one.reward is None else self._paid(one, one.reward, budget) for one in group.rollouts)

    def _paid(self, rollout: Rollout, reward: float, budget: int) -> float:
        num_left = budget - thinking_tokens(rollout) / max(1, len(rollout.turns))
        if self.aim == "exact":
            return reward - self.alpha * abs(num_left)
        return reward * min(1.0, max(0.0, self.alpha * num_left + DELTA))
