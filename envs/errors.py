"""Which errors are shown as a sentence, and which are bugs that need a traceback? How is an error formatted?

Environments may raise anything: an exception whose `__str__` raises, whose text has megabytes, or whose text contains
half a surrogate pair. `error_text` makes every text that becomes an error string or a message for the policy.
"""

import os
import traceback
from pathlib import Path

import gymnasium

from envs.messages import valid_text

FAILED = 1
"""Exit code of a command whose work failed."""
OURS = frozenset({"rl", "sft", "envs", "rewards"})
MAX_ERROR_CHARACTERS = 2000
"""Maximum length of an exception's text in an error string or a message; further characters are counted."""

MAX_NAME_CHARACTERS = 200
"""Maximum length of the name of an exception's type, which code can choose freely."""

_HERE = Path(__file__).parent
_MACHINERY = (
    *("check", "commands", "event_loop", "options_text", "player", "registry", "results", "scored"),
    *("session", "text_env", "tool_class", "tool_specs"),
)
NOT_THE_AUTHORS = (
    *(str(_HERE / name) for name in _MACHINERY),
    f"{_HERE.parent / 'rl'}{os.sep}",
    *(str(Path(module.__file__ or "").parents[up]) for module, up in ((os, 0), (gymnasium, 1))),
    "<",
)
"""Paths of code that the author of an environment did not write: the machinery, Python's library, packages."""


class InputError(ValueError):
    """What a user gave is wrong or missing: an argument, a configuration, a file, an id. Nothing was begun."""

    exit_code = 2


def exit_code(error: BaseException) -> int:
    """The exit code of a command that ended with this error of ours (`envs.exit_codes`)."""
    return getattr(error, "exit_code", FAILED)


def is_ours(error: BaseException) -> bool:
    """Whether the error is one of polygym's own types, whose message says what was wrong and how to fix it.

    Ray wraps an actor's error in a type that inherits from the error's type, so all base classes are checked.
    """
    return any(str(base.__module__).partition(".")[0] in OURS for base in type(error).__mro__)


def error_text(error: BaseException) -> str:
    """The exception's own text as valid text of bounded length. Never raises."""
    try:
        text = str(error)
    except BaseException as second:  # SystemExit included: this runs the environment's code
        return f"(its text cannot be shown: __str__ raised {type(second).__name__})"
    return cut(text, MAX_ERROR_CHARACTERS)


def named(error: BaseException) -> str:
    """`KeyError: 'answer'`: type and text. Never raises."""
    kind, text = cut(type(error).__name__, MAX_NAME_CHARACTERS), error_text(error)
    return f"{kind}: {text}" if text else kind


def told(error: BaseException) -> str:
    """The error's text and its notes, such as the file that tells more."""
    return "\n".join((str(error), *getattr(error, "__notes__", ())))


def shown(value: object, most: int = 200) -> str:
    """`repr(value)` as valid text of at most `most` characters; the value's type if that raises. Never raises."""
    try:
        return cut(repr(value), most)
    except BaseException:
        return f"a {type(value).__name__} that cannot be shown"


def cut(text: str, most: int) -> str:
    """The text made valid and cut to `most` characters; states how many characters are left out."""
    left_out = f" ... ({len(text) - most} characters more)" if len(text) > most else ""
    return valid_text(text[:most]) + left_out


def place_of(error: BaseException) -> str:
    """` (FILE:LINE)`, the innermost line of the author's code that led to the error; empty if there is none."""
    frames: list[traceback.FrameSummary] = []
    cause: BaseException | None = error
    seen: set[int] = set()
    while cause is not None and id(cause) not in seen:  # causes may be circular
        seen.add(id(cause))
        frames += traceback.extract_tb(cause.__traceback__)
        cause = cause.__cause__
    own = [frame for frame in frames if not frame.filename.startswith(NOT_THE_AUTHORS)]
    return f" ({own[-1].filename}:{own[-1].lineno})" if own else ""
