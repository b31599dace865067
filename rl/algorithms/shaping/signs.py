"""Which shapings would turn their own incentive round? Those that multiply rewards which may be negative.

A factor below 1 punishes a reward above 0; it pays one below 0.
"""

from collections.abc import Iterable, Sequence

from rl.algorithms.shaping.shaping import Shaping
from rl.config.errors import Problem


def sign_problems(env_id: str, shapings: Sequence[Shaping], lowest: float, where: str) -> list[Problem]:
    """A problem for each shaping of the environment that multiplies rewards and may be given negative ones.

    `lowest` is the lowest reward of the environment, `where` the place of `environments.ID.shaping`.
    """
    problems = []
    for number, shaping in enumerate(shapings):
        earlier = [one for one in shapings[:number] if _may_shape_one_task(one, shaping)]
        if not shaping.multiplies or _lowest_after(earlier, lowest) >= 0:
            continue
        negative = f"the rewards of {env_id} go down to {lowest:g}"
        fix = "remove it, or use a shaping that subtracts, such as overlong or length"
        if lowest >= 0:
            negative = "shapings before it can make them negative"
            fix = "put it before them in the list, or give it and them different `budgets`"
        wrong = f"it multiplies rewards, and {negative}: what it is to punish would gain"
        problems.append(Problem(where, f"environments.{env_id}.shaping.{number}", wrong, fix))
    return problems


def _may_shape_one_task(one: Shaping, other: Shaping) -> bool:
    return not one.budgets or not other.budgets or bool(set(one.budgets) & set(other.budgets))


def _lowest_after(shapings: Iterable[Shaping], lowest: float) -> float:
    for one in shapings:
        lowest = (min(lowest, 0.0) if one.multiplies else lowest) - one.most_subtracted
    return lowest
