"""Dr. GRPO: no division by the standard deviation, and none by a sequence's own length.

The objective of a sequence is the sum over its tokens, divided by one constant for all. https://arxiv.org/abs/2503.20783.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from rl.algorithms.advantages import group_advantages
from rl.algorithms.algorithm import Advantages, TokenView
from rl.algorithms.policy_gradient import PolicyGradient
from rl.data_types import Group


class DrGrpo(PolicyGradient):
    """Dr. GRPO: advantages by the mean of the group; the loss of a sequence is divided by a constant."""

    algorithm: Literal["dr_grpo"] = "dr_grpo"
    """Name of the algorithm."""
    tokens_per_sequence: Annotated[int, Field(gt=0)]
    """The constant that divides the sum over a sequence's tokens; the paper takes the maximum length of a reply."""

    def compare(self, groups: Sequence[Group]) -> list[Advantages]:
        return [group_advantages(group, "mean", False) for group in groups]

    def row_weights(self, view: TokenView) -> float:
        return view.num_loss_tokens / (view.num_loss_rows * self.tokens_per_sequence)
