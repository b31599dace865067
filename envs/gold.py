"""What does a perfect conversation look like? Plays an environment with its gold replies, for supervised training."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from envs.errors import InputError
from envs.messages import Message
from envs.player import gold, play_turns
from envs.session import EnvFailure, Session
from envs.text_env import TextEnv


class GoldError(InputError):
    """The environment has no gold replies, or they do not end the episode, or the environment failed."""


class GoldEpisode(NamedTuple):
    """A whole conversation, and how many of its messages are the task's opening, whose replies are not gold."""

    messages: tuple[Message, ...]
    num_opening: int


def gold_conversation(env: TextEnv, seed: int, options: Mapping[str, Any] | None = None) -> tuple[Message, ...]:
    """The messages of `gold_episode`."""
    return gold_episode(env, seed, options).messages


def gold_episode(env: TextEnv, seed: int, options: Mapping[str, Any] | None = None) -> GoldEpisode:
    """The whole conversation of one episode: opening messages, gold replies, and the environment's answers to them.

    The reply of the last allowed turn is not passed to `step`, which could only score it, and scoring may be expensive;
    but a reply that calls tools is, to see that it ends the episode.
    Raises `GoldError` if there are none, or they need more than `env.max_turns` turns, or the environment fails.
    """
    session = Session.of(env)
    try:
        opening, _ = session.reset(seed, options or {})
        messages = list(opening)
        has_ended, _ = play_turns(session, messages, gold, env.max_turns - 1)
        if has_ended:
            return GoldEpisode(tuple(messages), len(opening))
        last = session.gold_reply()
        ends = not last.tool_calls or session.step(last)[2]
    except EnvFailure as failure:
        if isinstance(failure.error, NotImplementedError):
            advice = "remove the environment from the supervised stage, or set sft.data"
            raise GoldError(f"{failure.error}: {advice}") from None
        raise GoldError(str(failure)) from failure
    if not ends:
        raise GoldError(
            f"{type(env).__name__}, seed {seed}: the gold reply of the last turn ({env.max_turns}) still calls tools;"
            " raise max_turns or let gold_reply end earlier"
        )
    return GoldEpisode((*messages, last.as_message()), len(opening))
