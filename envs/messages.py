"""What is said in an episode: messages, the policy's reply, tools and calls.

These types belong to the environments; how they become text and token ids is the business of `rl.chat.chat`. A Python
string may hold half a surrogate pair (`'\\ud800'`), which no tokenizer and no UTF-8 file takes: all text of an
environment goes through `valid_text`.
"""

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
    """A tool as the policy is told about it; `parameters` is a JSON Schema object."""

    name: str
    description: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Message:
    """One entry of a conversation. `name` is the tool's name where the role is `tool`."""

    role: Role
    content: str
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    name: str = ""


@dataclass(frozen=True, slots=True)
class Reply:
    """What the policy wrote in one turn, taken apart.

    `text` is what the user sees, `reasoning` what stood in the think block. `malformed` says what was wrong with a tool
    call that could not be read; it is empty when all calls could.
    """

    text: str
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    malformed: str = ""

    def as_message(self) -> Message:
        return Message("assistant", self.text, self.reasoning, self.tool_calls)


def valid_text(text: str) -> str:
    """The text as Unicode: surrogate pairs are joined, lone surrogates become U+FFFD; a `str`, of no subclass."""
    plain = str.__str__(text)
    if plain.isascii():
        return plain
    try:
        plain.encode()
    except UnicodeEncodeError:
        return plain.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return plain


def valid(said: Said) -> Said:
    """A message, call, tool or what they hold, with every text in it valid; itself where all are.

    Raises `RecursionError` for what holds itself.
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
