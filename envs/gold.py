"""What does a perfect conversation look like? Plays an environment with its gold replies, for supervised training."""

from collections.abc import Mapping
from typing import Any

from envs.messages import Message
from envs.text_env import TextEnv


class GoldError(ValueError):
    """The environment's gold replies do not end the episode."""


def gold_conversation(env: TextEnv, seed: int, options: Mapping[str, Any] | None = None) -> tuple[Message, ...]:
    """The whole conversation of one episode: opening messages, gold replies, and what the environment said to them.

    Raises `GoldError` when the episode is not over after `env.max_turns` replies.
    """
    opening, _ = env.reset(seed=seed, options=dict(options or {}))
    messages = list(opening)
    for _ in range(env.max_turns):
        reply = env.gold_reply()
        more, _, terminated, truncated, _ = env.step(reply)
        messages += [reply.as_message(), *more]
        if terminated or truncated:
            return tuple(messages)
    raise GoldError(
        f"{type(env).__name__}, seed {seed}: the gold replies did not end the episode within {env.max_turns} turns;"
        " raise max_turns or let gold_reply end earlier"
    )
