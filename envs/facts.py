"""What is known about an installed environment without opening a task?"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

from envs.registry import UnknownEnvironmentError
from envs.session import EnvFailure, Session


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known about an environment without opening a task."""

    reward_range: tuple[float, float]
    scores_groups: bool
    answer_of: Callable[[str], str | None] | None = None


@functools.cache
def facts(env_id: str) -> Facts:
    """The environment is made once for this, and closed. Raises `UnknownEnvironmentError`, `EnvFailure`."""
    with Session.installed(env_id) as session:
        low, high = session.env.reward_range
        return Facts((low, high), session.env.scores_groups, type(session.env).answer_of)


def reward_range_of(env_id: str) -> tuple[float, float]:
    """The declared range; 0 to 1 if the environment is not installed here, as for rollouts from elsewhere."""
    return known_facts(env_id).reward_range


def known_facts(env_id: str) -> Facts:
    """The facts; the defaults of the contract if the environment is not installed here."""
    try:
        return facts(env_id)
    except EnvFailure as failure:
        if isinstance(failure.error, UnknownEnvironmentError):
            return Facts((0.0, 1.0), scores_groups=False)
        raise
