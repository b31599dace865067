"""Low effort, as Nemotron 3's recipes ship it: tasks that ask for little reasoning reward short rollouts.

NVIDIA-NeMo/RL, `EffortLevelsConfig` in experience/rollouts.py: s = min(1, weight * (1 - length / tokens)), and the
reward becomes r + r * max(s, 0) + penalty * min(s, 0).
"""

import math
from typing import Annotated, Literal

from pydantic import Field

from rl.algorithms.shaping.shaping import Rewards, Shaping
from rl.config.budgets import budget_text
from rl.data_types import Group, Rollout


class Effort(Shaping):
    """Tasks that ask for little reasoning: gain below `tokens`, loss above. They are those of `budgets`, or else those
    whose last message of a user before the first reply has the marker, in its own text or as their effort."""

    shaping: Literal["effort"] = "effort"
    """Name of the shaping."""
    marker: Annotated[str, Field(min_length=1)] = "{reasoning effort: efficient}"
    """Text that asks for little reasoning; of no use beside `budgets`."""
    tokens: Annotated[int, Field(gt=0)] = 15000
    """Reply tokens of a rollout at which nothing is gained or lost."""
    weight: Annotated[float, Field(ge=0)] = 0.1
    """How much of its reward a rollout of no tokens gains."""
    penalty: Annotated[float, Field(ge=0)] = 1.0
    """Factor of what longer rollouts lose."""

    @property
    def multiplies(self) -> bool:
        return True

    @property
    def most_subtracted(self) -> float:
        return math.inf if self.weight and self.penalty else 0.0

    def shape(self, group: Group) -> Rewards:
        return tuple(None if one.reward is None else self._shaped(one, one.reward) for one in group.rollouts)

    def _shaped(self, rollout: Rollout, reward: float) -> float:
        if not self.budgets and not self._asks_for_little(rollout):
            return reward
        saved = min(1.0, self.weight * (1.0 - rollout.num_reply_tokens / self.tokens))
        return reward + reward * max(saved, 0.0) + self.penalty * min(saved, 0.0)

    def _asks_for_little(self, rollout: Rollout) -> bool:
        asked = [message.content for message in rollout.messages[: rollout.first_reply] if message.role == "user"]
        return bool(asked) and self.marker in asked[-1] + budget_text(rollout.task.budget)
