"""Which reasoning effort does a user message ask for, such as `{reasoning effort: efficient}`?

The text is that of `rl.config.budgets.effort_text`, by which policies are told an effort in reinforcement learning too.
"""

import re
from collections.abc import Iterable

from envs.messages import Message

_STATED = re.compile(r"\{reasoning effort: ([\w-]+)\}\s*$")


def stated_effort(text: str) -> str | None:
    """The effort that a user message ends with; None if it states none."""
    found = _STATED.search(text)
    return found[1] if found else None


def asked_effort(messages: Iterable[Message]) -> str | None:
    """The effort that the last user message ends with; None if it states none, or if there is no such message."""
    asked = [message.content for message in messages if message.role == "user"]
    return stated_effort(asked[-1]) if asked else None
