"""How is a rollout played outside of a trainer? An environment, and somebody who chooses the replies.

Gold replies, a person, an endpoint's model, saved replies and the probes of the checks all play here. The trainer plays
tokens and not replies, so it has a loop of its own (`rl.rollouts.play`); how environments are called and what they may
give is the same (`envs.session`, `envs.results`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from envs.messages import Message, Reply
from envs.session import EnvFailure, Session

Choose = Callable[[Session, Sequence[Message]], Reply | None]
"""Chooses the reply to a conversation; None cuts the rollout off. Raises `NoReplyError`."""


class NoReplyError(RuntimeError):
    """Who chooses the replies failed, such as an endpoint: no reward, and nobody's doing in the rollout."""


@dataclass(frozen=True, slots=True)
class EnvTask:
    """What is to be played; `options` without the split."""

    env_id: str
    seed: int
    split: str
    options: Mapping[str, Any]

    def all_options(self) -> dict[str, Any]:
        return {**self.options, "split": self.split}


@dataclass(frozen=True, slots=True)
class EnvRollout:
    """One rollout as the environment saw it."""

    messages: tuple[Message, ...]
    reward: float | None
    """None exactly where the outcome is a failure."""
    reward_parts: Mapping[str, float]
    outcome: str
    """`ok`, `truncated` (by the environment or by us), `env_error`, `env_timeout` or `infra_error`."""
    error: str = ""

    @property
    def counts(self) -> bool:
        return self.reward is not None


def play(task: EnvTask, choose: Choose, session: Session) -> EnvRollout:
    """Play the task in a session of its environment and close it. Never raises for what environment or chooser do."""
    messages: list[Message] = []
    with session:
        try:
            opening, _ = session.reset(task.seed, task.all_options())
            messages += opening
            has_ended, truncated = play_turns(session, messages, choose, session.env.max_turns)
            if not has_ended:
                session.check_total(session.reward)
        except EnvFailure as failure:
            return EnvRollout(tuple(messages), None, {}, failure.outcome, str(failure))
        except NoReplyError as failure:
            return EnvRollout(tuple(messages), None, {}, "infra_error", str(failure))
    outcome = "truncated" if truncated or not has_ended else "ok"
    return EnvRollout(tuple(messages), session.reward, session.parts or {}, outcome)


def play_turns(session: Session, messages: list[Message], choose: Choose, num_turns: int) -> tuple[bool, bool]:
    """Play at most `num_turns` turns of a session that was reset, adding to `messages`.

    Gives whether the environment ended the rollout, and whether it did so by truncation. Raises `EnvFailure`, and
    whatever `choose` raises.
    """
    for _ in range(num_turns):
        reply = choose(session, messages)
        if reply is None:
            return False, False
        messages.append(reply.as_message())
        following, _, terminated, truncated, _ = session.step(reply)
        messages += following
        if terminated or truncated:
            return True, truncated
    return False, False


def gold(session: Session, messages: Sequence[Message]) -> Reply:
    """Chooses the gold reply. Raises `EnvFailure`."""
    return session.gold_reply()


def saying(text: str) -> Choose:
    """Chooses the same text always."""
    return lambda session, messages: Reply(text)


def score_group(task: EnvTask, rollouts: Sequence[EnvRollout], session: Session) -> list[EnvRollout]:
    """The rollouts of one task with what comparing them pays, in a session of its own, which is closed.

    Members that failed are left out of the comparison. Where it fails, no member has a reward. Never raises for what
    the environment does.
    """
    counted = [rollout for rollout in rollouts if rollout.counts]
    if not counted:
        return list(rollouts)
    with session:
        try:
            session.reset(task.seed, task.all_options())
            scores = session.score_group([rollout.messages for rollout in counted])
            added = iter([_added(session, *pair) for pair in zip(counted, scores, strict=True)])
        except EnvFailure as failure:
            failed = {"reward": None, "reward_parts": {}, "outcome": failure.outcome, "error": str(failure)}
            return [replace(rollout, **failed) if rollout.counts else rollout for rollout in rollouts]
    return [next(added) if rollout.counts else rollout for rollout in rollouts]


def _added(session: Session, rollout: EnvRollout, score: tuple[float, Mapping[str, float]]) -> EnvRollout:
    reward = (rollout.reward or 0.0) + score[0]
    session.check_total(reward)
    return replace(rollout, reward=reward, reward_parts={**rollout.reward_parts, **score[1]})
