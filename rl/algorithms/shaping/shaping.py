"""What must a reward shaping implement? New rewards for the rollouts of a group."""

from rl.config.budgets import ReadBudget
from rl.config.section import Section
from rl.data_types import Group, Rollout

Rewards = tuple[float | None, ...]
"""One per rollout of a group, in order; None for rollouts that do not count."""


class Shaping(Section):
    """A reward shaping: a configuration section with code. It changes rewards before advantages are computed; metrics
    of rewards, saved rollouts and evaluations keep those of the environment.

    To add one, write a subclass in its own file with its keys, one of which is `shaping: Literal["name"] = "name"`, and
    add it to `rl.algorithms.shaping.SHAPINGS`. Say in `multiplies` and `most_subtracted` what it does to rewards:
    checks before a run (`rl.algorithms.shaping.signs`) read them.
    """

    budgets: tuple[ReadBudget, ...] = ()
    """Thinking budgets, efforts included, of the tasks that are shaped, such as `[low]`; empty shapes all. No
    numbers beside `budget_curriculum`, which changes them."""

    @property
    def multiplies(self) -> bool:
        """Whether it multiplies rewards: then it must be given no negative one, of which a small factor is a gain."""
        return False

    @property
    def most_subtracted(self) -> float:
        """The most that it subtracts from a reward; infinity without a bound."""
        return 0.0

    def shape(self, group: Group) -> Rewards:
        """The rewards after this shaping."""
        raise NotImplementedError


def thinking_tokens(rollout: Rollout) -> float:
    """Reply tokens of the reasoning, by its share of the characters that the policy wrote, tool calls included.

    Messages have no tokens.
    """
    thought = sum(len(message.reasoning) for message in rollout.replies)
    num_characters = thought + sum(len(text) for message in rollout.replies for text in message.answer_texts)
    return rollout.num_reply_tokens * thought / num_characters if num_characters else 0.0
