"""What does a perfect conversation look like? Plays an environment with its gold replies, for supervised training."""

from collections.abc import Mapping
from typing import Any

from envs.event_loop import settle
from envs.messages import Message
from envs.text_env import TextEnv


class GoldError(ValueError):
    """The environment has no gold replies, or they do not end the episode."""


def gold_conversation(env: TextEnv, seed: int, options: Mapping[str, Any] | None = None) -> tuple[Message, ...]:
    """The whole conversation of one episode: opening messages, gold replies, and what the environment said to them.

    The reply of the last allowed turn is not stepped, since all it could bring is its score, and scoring may be dear.
    Raises `GoldError` when there are none, or they need more than `env.max_turns` turns.
    """
    try:
        return _played(env, seed, options)
    except NotImplementedError as error:
        raise GoldError(f"{error}: leave the environment out of the supervised stage, or give sft.data") from None


def _played(env: TextEnv, seed: int, options: Mapping[str, Any] | None) -> tuple[Message, ...]:
    opening, _ = settle(env.reset(seed=seed, options=dict(options or {})))
    messages = list(opening)
    for _ in range(env.max_turns - 1):
        reply = env.gold_reply()
        more, _, terminated, truncated, _ = settle(env.step(reply))
        messages += [reply.as_message(), *more]
        if terminated or truncated:
            return tuple(messages)
    last = env.gold_reply()
    if last.tool_calls:
        raise GoldError(
            f"{type(env).__name__}, seed {seed}: the gold reply of the last turn ({env.max_turns}) still calls tools;"
            " raise max_turns or let gold_reply end earlier"
        )
    return (*messages, last.as_message())
