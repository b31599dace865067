"""How is one message of a row read: its role, text, thinking and tool calls? And the tools of the row?

Rows come from JSON, Parquet and `datasets`, so a value may be of any type; whatever does not fit raises `BadRow`.
"""

import json
from collections.abc import Mapping
from typing import Any

from envs.messages import Message, Role, ToolCall, ToolSpec, valid
from rl.chat.calls.parameter_values import takes_null

ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
    "function_response": "tool",
    "tool_response": "tool",
}
"""Roles by the names that OpenAI's and ShareGPT's forms give them."""
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
THINK, THINK_END = "<think>", "</think>"


class BadRow(ValueError):
    """What is wrong with a row, without its place."""


class MessageReader:
    """Reads the messages of one row in order.

    `has_thinking` says whether the chat format has a think block; without one, think tags in a content stay text.
    """

    def __init__(self, tools: tuple[ToolSpec, ...], *, has_thinking: bool) -> None:
        self._tools = tools
        self._has_thinking = has_thinking
        self._names: dict[str, str] = {}
        """Name of the called tool by the id of the call, which is all that OpenAI's tool messages tell."""

    def read(self, message: Any) -> Message:
        """Raises `BadRow`."""
        if not isinstance(message, Mapping):
            raise BadRow(f"a message must be an object, got {type(message).__name__}")
        given = message.get("role")
        role = ROLES.get(given) if isinstance(given, str) else None
        if role is None:
            raise BadRow(f"a message's role must be one of {', '.join(ROLES)}, got {given!r:.100}")
        content, reasoning = _read_content(message.get("content")), _read_reasoning(message)
        if role == "assistant" and self._has_thinking:
            content, reasoning = split_thinking(content, reasoning)
        calls = self._read_calls(message.get("tool_calls"))
        if role != "assistant" and (reasoning or calls):
            raise BadRow(f"a message of role {role} has reasoning or tool calls, which only an assistant's may have")
        name = _read_text(message, "name") or self._names.get(_read_text(message, "tool_call_id"), "")
        return Message(role, content, reasoning, calls, name)

    def _read_calls(self, value: Any) -> tuple[ToolCall, ...]:
        calls = []
        for given in _read_list(value, "a message's tool_calls"):
            call = _read_call(given, self._tools)
            calls.append(call)
            if isinstance(id := given.get("id"), str):
                self._names[id] = call.name
        return tuple(calls)


def read_tools(value: Any) -> tuple[ToolSpec, ...]:
    """The tools of a row: a list or its JSON text, of tools or their JSON texts; may be missing. Raises `BadRow`."""
    return tuple(_read_tool(tool) for tool in _read_list(value, "tools"))


def from_json(text: str, what: str) -> Any:
    """The value of JSON text. Raises `BadRow`, which begins with `what`."""
    try:
        return valid(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise BadRow(f"{what}: text that is not JSON ({error}): {text!r:.100}") from None


def _read_content(value: Any) -> str:
    """Text, or the joined texts of a list of parts."""
    if not isinstance(value, list):
        return _read_text({"content": value}, "content")
    texts = []
    for part in value:
        kind, text = (part.get("type"), part.get("text")) if isinstance(part, Mapping) else (None, None)
        if kind != "text" or not isinstance(text, str):
            raise BadRow(
                'a part of a content must be {"type": "text", "text": "..."}; other types cannot be trained:'
                f" {part!r:.100}"
            )
        texts.append(text)
    return "".join(texts)


def _read_text(message: Mapping[str, Any], key: str) -> str:
    value = message.get(key)
    if value is not None and not isinstance(value, str):
        raise BadRow(f"a message's {key} must be text, got {type(value).__name__}")
    return value or ""


def _read_reasoning(message: Mapping[str, Any]) -> str:
    """The reasoning of a field; the same text may stand in several."""
    given = {key: text for key in REASONING_KEYS if (text := _read_text(message, key))}
    if len(set(given.values())) > 1:
        raise BadRow(f"a message's {' and '.join(given)} are different texts; keep the one to train")
    return next(iter(given.values()), "")


def split_thinking(content: str, reasoning: str) -> tuple[str, str]:
    """Content and reasoning, when the reasoning stands in the content between tags. Raises `BadRow`."""
    if THINK not in content and THINK_END not in content:
        return content, reasoning
    before, _, rest = content.partition(THINK)
    inside, end, answer = rest.partition(THINK_END)
    if reasoning:
        wrong = "think tags, and the message gives its reasoning as a field too; keep one of them"
    elif before.strip():  # also where only </think> is there
        wrong = f"a {THINK} or {THINK_END} that does not begin it; give the reasoning as {REASONING_KEYS[0]}"
    elif not end:
        wrong = f"a {THINK} that no {THINK_END} closes"
    elif THINK in rest or THINK_END in answer:
        wrong = f"several {THINK} or {THINK_END}, so where its reasoning ends is not clear"
    else:
        return answer.lstrip("\n"), inside.strip("\n")
    raise BadRow(f"an assistant's content has {wrong}")


def _read_call(call: Any, tools: tuple[ToolSpec, ...]) -> ToolCall:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    given = (function.get("arguments") or {}) if isinstance(function, Mapping) else None
    arguments = from_json(given, "a call's arguments") if isinstance(given, str) else given
    if not isinstance(name, str) or not name or not isinstance(arguments, Mapping):
        raise BadRow(f"a tool call needs a name and arguments as an object, got {call!r:.300}")
    if not isinstance(given, str):  # an export of `datasets` fills objects with None, texts it leaves alone
        schema = next((tool.parameters for tool in tools if tool.name == name), None)
        arguments = {
            key: value for key, value in arguments.items() if value is not None or takes_null(str(key), schema)
        }
    return ToolCall(name, dict(arguments))


def _read_tool(tool: Any) -> ToolSpec:
    tool = from_json(tool, "a tool") if isinstance(tool, str) else tool
    function = tool.get("function", tool) if isinstance(tool, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str) or not name:
        raise BadRow(f"a tool needs a name, got {tool!r:.300}")
    description, given = function.get("description") or "", function.get("parameters") or {}
    parameters = from_json(given, f"the parameters of tool {name}") if isinstance(given, str) else given
    if not isinstance(description, str) or not isinstance(parameters, Mapping):
        raise BadRow(f"tool {name} needs a description as text and parameters as an object, got {tool!r:.300}")
    return ToolSpec(name, description, parameters)


def _read_list(value: Any, what: str) -> list[Any]:
    """A list, which may be missing or JSON text."""
    read = from_json(value, what) if isinstance(value, str) and value.strip() else value or []
    if not isinstance(read, list):
        raise BadRow(f"{what} must be a list, or its JSON text, got {type(read).__name__}")
    return read
