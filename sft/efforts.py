"""With which text does a user message ask for a reasoning effort, such as `{reasoning effort: efficient}`?

The marker of Nemotron 3's recipes (NVIDIA-NeMo/RL, `EffortLevelsConfig`): plain text at the end of the last user
message, by which `rl.algorithms.shaping.effort` knows such tasks.
"""

import re

_STATED = re.compile(r"\{reasoning effort: ([\w-]+)\}\s*$")


def effort_text(effort: str) -> str:
    """What is added to a user message."""
    return f"\n\n{{reasoning effort: {effort}}}"


def stated_effort(text: str) -> str | None:
    """The effort that a user message ends with; None if it states none."""
    found = _STATED.search(text)
    return found[1] if found else None
