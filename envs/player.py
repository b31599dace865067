"""How is a rollout played outside of a trainer? With an environment and a function that chooses the replies.

Gold replies, a person, an endpoint's model, saved replies and the probes of the checks are all played here. The trainer
plays tokens instead of replies, so it has its own loop (`rl.rollouts.play`). Both call environments, and check their
results, by the same rules (`envs.session`, `envs.results`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from envs.messages import Message, Reply
from envs.session import EnvFailure, Session

Choose = Callable[[Session, Sequence[Message]], Reply | None]
"""Chooses the reply to a conversation; None truncates the rollout. Raises `NoReplyError`."""


class NoReplyError(RuntimeError):
    """The source of replies failed, such as an endpoint: no reward, and neither policy nor environment is at fault."""


@dataclass(frozen=True, slots=True)
class EnvTask:
    """The task to play; `options` do not contain the split."""

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
    """None exactly when the outcome is a failure."""
    reward_parts: Mapping[str, float]
    outcome: str
    """`ok`, `truncated` (by the environment or by us), `env_error`, `env_timeout` or `infra_error`."""
    error: str = ""

    @property
    def counts(self) -> bool:
        return self.reward is not None


def play(task: EnvTask, choose: Choose, session: Session) -> EnvRollout:
    """Play the task in a session of its environment and close it. Failures of environment or `choose` do not raise."""
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
    """Play at most `num_turns` turns of a session that was reset, and append to `messages`.

    Returns whether the environment ended the rollout, and whether it did so by truncation. Raises `EnvFailure`, and
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
    """Always chooses the same text."""
    return lambda session, messages: Reply(text)


def score_group(task: EnvTask, rollouts: Sequence[EnvRollout], session: Session) -> list[EnvRollout]:
    """The rollouts of one task with the rewards of their comparison added; uses its own session, which is closed.

    Members that failed are left out of the comparison. If it fails, no member has a reward. Never raises for failures
    of the environment.
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
