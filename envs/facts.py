"""What can be known of an installed environment without opening a task?"""

import functools
from dataclasses import dataclass

from envs.registry import UnknownEnvironmentError
from envs.session import EnvFailure, Session


@dataclass(frozen=True, slots=True)
class Facts:
    """What can be known of an environment without opening a task."""

    reward_range: tuple[float, float]
    scores_groups: bool


@functools.cache
def facts(env_id: str) -> Facts:
    """Made once for this, and closed. Raises `UnknownEnvironmentError`, `EnvFailure`."""
    with Session.installed(env_id) as session:
        low, high = session.env.reward_range
        return Facts((low, high), session.env.scores_groups)


def reward_range_of(env_id: str) -> tuple[float, float]:
    """The declared range; 0 to 1 where the environment is not installed here, as with rollouts from elsewhere."""
    try:
        return facts(env_id).reward_range
    except EnvFailure as failure:
        if isinstance(failure.error, UnknownEnvironmentError):
            return (0.0, 1.0)
        raise
