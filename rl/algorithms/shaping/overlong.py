"""DAPO's overlong punishment: replies near the limit lose reward. https://arxiv.org/abs/2503.14476, equation 13."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rl.algorithms.shaping.shaping import Rewards, Shaping
from rl.data_types import Group


class Overlong(Shaping):
    """Rollouts of more than max_tokens - buffer_tokens lose reward, the more the longer they are."""

    shaping: Literal["overlong"] = "overlong"
    """Name of the shaping."""
    max_tokens: Annotated[int, Field(gt=0)]
    """Reply tokens of a rollout, of all its turns, from which on the whole penalty is due."""
    buffer_tokens: Annotated[int, Field(gt=0)]
    """Tokens before that over which the penalty grows from 0."""
    penalty: Annotated[float, Field(gt=0)] = 1.0
    """The whole penalty, subtracted from the reward."""

    @model_validator(mode="after")
    def _buffer_fits(self) -> "Overlong":
        if self.buffer_tokens > self.max_tokens:
            raise ValueError(f"buffer_tokens ({self.buffer_tokens}) must be at most max_tokens ({self.max_tokens})")
        return self

    @property
    def most_subtracted(self) -> float:
        return self.penalty

    def shape(self, group: Group) -> Rewards:
        start = self.max_tokens - self.buffer_tokens
        return tuple(
            None
            if one.reward is None
            else one.reward - self.penalty * min(1.0, max(0.0, (one.num_reply_tokens - start) / self.buffer_tokens))
            for one in group.rollouts
        )
