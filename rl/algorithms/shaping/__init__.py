"""Which reward shapings can a configuration name? One file each, registered in `SHAPINGS`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Annotated

from rl.algorithms.advantages import is_degenerate
from rl.algorithms.shaping.budget import BudgetKept
from rl.algorithms.shaping.effort import Effort
from rl.algorithms.shaping.length import Length
from rl.algorithms.shaping.overlong import Overlong
from rl.algorithms.shaping.shaping import Shaping
from rl.config.section import OneOf
from rl.data_types import Group

SHAPINGS: dict[str, type[Shaping]] = {"overlong": Overlong, "length": Length, "effort": Effort, "budget": BudgetKept}
AnyShaping = Annotated[Shaping, OneOf(SHAPINGS, "shaping", "length")]
"""Type of an entry of a list of shapings."""

Shapings = Mapping[str, Sequence[Shaping]]
"""By environment, in the order in which they are applied."""


def shaped(groups: Sequence[Group], shapings: Shapings) -> list[Group]:
    """The groups with the rewards that advantages are computed from."""
    return [_shaped(group, shapings.get(group.task.env_id, ())) for group in groups]


def with_signal(groups: Sequence[Group], shapings: Shapings) -> list[Group]:
    """Those of the groups, shaped, from which advantages can be computed."""
    return [group for group in shaped(groups, shapings) if not is_degenerate(group)]


def shaping_metrics(groups: Sequence[Group], shapings: Shapings) -> dict[str, float]:
    """`shaping/ENV`: what shapings add to the reward of a rollout that counts, on average."""
    changes: dict[str, list[float]] = {}
    for group, after in zip(groups, shaped(groups, shapings), strict=True):
        if shapings.get(group.task.env_id):
            changes.setdefault(group.task.env_id, []).extend(
                new.reward - old.reward
                for old, new in zip(group.rollouts, after.rollouts, strict=True)
                if new.reward is not None and old.reward is not None
            )
    return {f"shaping/{env_id}": fmean(one) for env_id, one in changes.items() if one}


def _shaped(group: Group, shapings: Sequence[Shaping]) -> Group:
    for one in shapings:
        if one.budgets and group.task.budget not in one.budgets:
            continue
        rewards = one.shape(group)
        rollouts = [replace(rollout, reward=new) for rollout, new in zip(group.rollouts, rewards, strict=True)]
        group = replace(group, rollouts=tuple(rollouts))
    return group
