"""Group-relative length control of Nemotron 3 Nano: shorter rollouts of a group gain, longer ones lose as much.

Nemotron 3 Nano, https://arxiv.org/abs/2512.20848, section 3.3: w_i = 1 - (l_i - l_min) / (l_max - l_min), centred over
the group, for the reasoning and for the answer; and a bonus for the shortest of the good ones.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from rl.algorithms.shaping.shaping import Rewards, Shaping, thinking_tokens
from rl.config.section import Share
from rl.data_types import Group, Rollout

NonNegative = Annotated[float, Field(ge=0)]


class Length(Shaping):
    """Shorter reasoning and shorter answers than the others of the group gain reward, longer ones lose it.

    Lengths are tokens; those of a reply are divided between reasoning and answer, tool calls included, by their
    characters.
    """

    shaping: Literal["length"] = "length"
    """Name of the shaping."""
    thinking: NonNegative = 0.5
    """Weight of the reasoning's length: the shortest gains at most this more than the longest."""
    answer: NonNegative = 0.5
    """Weight of the answer's length."""
    thinking_bonus: NonNegative = 0.5
    """Reward for the shortest reasoning, if its rollout is among the best."""
    answer_bonus: NonNegative = 0.5
    """Reward for the shortest answer, if its rollout is among the best."""
    top_share: Share = 0.2
    """The best are those whose reward reaches the quantile 1 - top_share of the group's."""

    @property
    def most_subtracted(self) -> float:
        return self.thinking + self.answer

    def shape(self, group: Group) -> Rewards:
        valid = [one for one in group.rollouts if one.reward is not None]
        if len(valid) < 2:
            return tuple(one.reward for one in group.rollouts)
        rewards = np.array([one.reward for one in valid])
        good = rewards >= np.quantile(rewards, 1.0 - self.top_share)
        shaped = rewards.copy()
        parts: Sequence[tuple[Callable[[Rollout], float], float, float]] = (
            (thinking_tokens, self.thinking, self.thinking_bonus),
            (_answer_tokens, self.answer, self.answer_bonus),
        )
        for length_of, weight, bonus in parts:
            lengths = np.array([length_of(one) for one in valid])
            shaped += weight * _centred(lengths) + bonus * (good & (lengths == lengths.min()) & (np.ptp(lengths) > 0))
        values = iter(shaped.tolist())
        return tuple(None if one.reward is None else next(values) for one in group.rollouts)


def _answer_tokens(rollout: Rollout) -> float:
    return rollout.num_reply_tokens - thinking_tokens(rollout)


def _centred(lengths: np.ndarray) -> np.ndarray:
    """1 for the shortest, 0 for the longest, minus the mean; 0 if all are equal."""
    spread = np.ptp(lengths)
    if not spread:
        return np.zeros(len(lengths))
    shortness = 1.0 - (lengths - lengths.min()) / spread
    return shortness - shortness.mean()
