"""How are group scores added to rewards, for environments whose judge compares all members of a group?"""

import dataclasses
from collections.abc import Sequence

from rl.data_types import Outcome, Rollout, Task
from rl.rollouts.env_session import EnvSessionError
from rl.rollouts.play import Episode, Player, leave, unforeseen


async def with_group_scores(player: Player, task: Task, rollouts: Sequence[Rollout]) -> tuple[Rollout, ...]:
    """The rollouts with their group's scores added, if their environment scores groups; otherwise unchanged.

    Members whose outcome does not count are excluded from the comparison. A comparison that fails is retried like an
    episode. If the last retry fails, no member has a reward, and the failure is their outcome. What nobody foresaw is
    an infrastructure error, with its traceback.
    """
    counted = [rollout for rollout in rollouts if rollout.outcome.counts]
    if not counted:
        return tuple(rollouts)
    for num_left in range(player.config.rollout.num_retries, -1, -1):
        episode = player.session(task)
        try:
            if not await episode.compares():
                return tuple(rollouts)
            await episode.reset()
            scores = await episode.score_group([rollout.messages for rollout in counted])
            added = {id(rollout): add(episode, rollout, *score) for rollout, score in zip(counted, scores, strict=True)}
            return tuple(added.get(id(rollout), rollout) for rollout in rollouts)
        except EnvSessionError as error:
            outcome, told = error.outcome, str(error)
        except Exception:
            outcome, told = Outcome.INFRA_ERROR, unforeseen(task)
        finally:
            leave(episode, task)
        if not num_left:
            return tuple(failed(one, outcome, told) if one.outcome.counts else one for one in rollouts)
    raise AssertionError("the last attempt returns")


def add(episode: Episode, rollout: Rollout, score: float, parts: dict[str, float]) -> Rollout:
    """The rollout with the score added. Raises `EnvSessionError` if the sum is outside the declared range."""
    assert rollout.reward is not None
    reward = rollout.reward + score
    episode.check_total(reward)
    return dataclasses.replace(rollout, reward=reward, reward_parts={**rollout.reward_parts, **parts})


def failed(rollout: Rollout, outcome: Outcome, error: str) -> Rollout:
    return dataclasses.replace(rollout, reward=None, reward_parts={}, outcome=outcome, error=error)
