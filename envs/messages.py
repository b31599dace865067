"""What is said in an episode: messages, the policy's reply, tools and calls.

These types belong to the environments; how they become text and token ids is the business of `rl.chat.chat`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]


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
