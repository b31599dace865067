"""What does a conversation consist of? Messages, the policy's replies, tools and calls.

These types belong to the environments; `rl.chat.chat` converts them to text and token ids. A Python string may contain
half a surrogate pair (`'\\ud800'`), which tokenizers and UTF-8 files reject. So all text of an environment passes
through `valid_text`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal, TypeVar

Role = Literal["system", "user", "assistant", "tool"]
Said = TypeVar("Said")


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the policy made: the tool's name and its arguments by name."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool as it is described to the policy; `parameters` is a JSON Schema object."""

    name: str
    description: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Message:
    """One entry of a conversation. `name` is the tool's name if the role is `tool`."""

    role: Role
    content: str
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    name: str = ""

    @property
    def answer_texts(self) -> tuple[str, ...]:
        """What a reply says beside its reasoning: its content, and its tool calls as JSON."""
        calls = (json.dumps([call.name, call.arguments], default=str) for call in self.tool_calls)
        return (self.content, *calls)


@dataclass(frozen=True, slots=True)
class Reply:
    """What the policy wrote in one turn, parsed.

    `text` is what the user sees; `reasoning` is the content of the think block. `malformed` says what was wrong with a
    tool call that could not be parsed; it is empty if all calls were parsed.
    """

    text: str
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    malformed: str = ""
    malformed_kind: str = ""
    """What kind of fault `malformed` describes, for metrics."""

    def as_message(self) -> Message:
        return Message("assistant", self.text, self.reasoning, self.tool_calls)


def valid_text(text: str) -> str:
    """The text as valid Unicode (`str`, not a subclass): joins surrogate pairs, replaces lone surrogates by U+FFFD."""
    plain = str.__str__(text)
    if plain.isascii():
        return plain
    try:
        plain.encode()
    except UnicodeEncodeError:
        return plain.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return plain


def valid(said: Said) -> Said:
    """A message, call, tool or a value inside one, with all text made valid; the same object if all text is valid.

    Raises `RecursionError` for a value that contains itself.
    """
    value: Any = said
    if isinstance(value, str):
        return valid_text(value)  # type: ignore[return-value]
    if isinstance(value, Mapping):
        pairs = {valid(key): valid(item) for key, item in value.items()}
        return value if pairs == value else pairs  # type: ignore[return-value]
    if isinstance(value, list | tuple):
        items = [valid(item) for item in value]
        unchanged = all(item is old for item, old in zip(items, value, strict=True))
        return value if unchanged else type(value)(items)  # type: ignore[return-value]
    if is_dataclass(value) and not isinstance(value, type):
        old = {one.name: getattr(value, one.name) for one in fields(value)}
        changed = {name: new for name, item in old.items() if (new := valid(item)) is not item}
        return replace(value, **changed) if changed else said  # type: ignore[return-value]
    return said
