"""With which text does a user message ask for a reasoning effort, such as `{reasoning effort: efficient}`?

The marker of Nemotron 3's recipes (NVIDIA-NeMo/RL, `EffortLevelsConfig`): plain text at the end of the last user
message, by which `rl.algorithms.shaping.effort` knows such tasks.
"""

import re
from collections.abc import Iterable

from envs.messages import Message

_STATED = re.compile(r"\{reasoning effort: ([\w-]+)\}\s*$")


def effort_text(effort: str) -> str:
    """What is added to a user message."""
    return f"\n\n{{reasoning effort: {effort}}}"


def stated_effort(text: str) -> str | None:
    """The effort that a user message ends with; None if it states none."""
    found = _STATED.search(text)
    return found[1] if found else None


def asked_effort(messages: Iterable[Message]) -> str | None:
    """The effort that the last user message ends with; None if it states none, or if there is no such message."""
    asked = [message.content for message in messages if message.role == "user"]
    return stated_effort(asked[-1]) if asked else None
