"""How is one message of a row read: its role, text, thinking and tool calls? And the tools of the row?

Rows come from JSON, Parquet and `datasets`, so a value may be of any type; whatever does not fit raises `BadRow`.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from envs.messages import Message, Role, ToolCall, ToolSpec, valid
from rl.chat.calls.parameter_values import takes_null
from sft.filling import schema_without_filling

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
CALL_KEYS = ("tool_calls", "function_call")
ABOUT_KEYS = ("role", "from", "name", "id", "tool_call_id", "weight")
"""Keys of a message that say something about it, and not what it says."""
ARGUMENT_KEYS = ("arguments", "args", "parameters", "input")
"""Of a call."""
SCHEMA_KEYS = ("parameters", "input_schema", "inputSchema")
"""Of a tool."""
THINK, THINK_END = "<think>", "</think>"


class BadRow(ValueError):
    """What is wrong with a row, without its place."""


class MessageReader:
    """Reads the messages of one row in order.

    `has_thinking` says whether the chat format has a think block; without one, think tags in a content stay text.
    `was_sampled` keeps reasoning as it is, which is else without line breaks around it, as between think tags.
    """

    def __init__(self, tools: tuple[ToolSpec, ...], *, has_thinking: bool, was_sampled: bool = False) -> None:
        self._tools = tools
        self._has_thinking = has_thinking
        self._around = "" if was_sampled else "\n"
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
        content, reasoning = _read_content(message.get("content")), _read_reasoning(message, self._around)
        if role == "assistant" and self._has_thinking:
            content, reasoning = split_thinking(content, reasoning)
        calls = self._read_calls(message)
        if role != "assistant" and (reasoning or calls):
            raise BadRow(f"a message of role {role} has reasoning or tool calls, which only an assistant's may have")
        if message.get("content") is None and not (reasoning or calls):
            _check_says_nothing(role, message)
        name = _read_text(message, "name") or self._names.get(_read_text(message, "tool_call_id"), "")
        return Message(role, content, reasoning, calls, name)

    def _read_calls(self, message: Mapping[str, Any]) -> tuple[ToolCall, ...]:
        calls = []
        for given in _given_calls(message):
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


def _check_says_nothing(role: Role, message: Mapping[str, Any]) -> None:
    """Raises `BadRow` for a message without a content that must have one, or that says it under another key."""
    about = (*ABOUT_KEYS, *REASONING_KEYS, *CALL_KEYS)
    others = [key for key, value in message.items() if key not in about and value and isinstance(value, str | list)]
    if others or role == "assistant":
        keys = ", ".join(str(key) for key, value in message.items() if value is not None)
        wanted = "content, reasoning_content or tool_calls" if role == "assistant" else "content"
        raise BadRow(
            f"a message of role {role} has no {wanted}, only {keys:.200}: rename the key that has its text, or set"
            ' content to ""'
        )


def _read_reasoning(message: Mapping[str, Any], around: str) -> str:
    """The reasoning of a field, without the characters `around` it; the same text may stand in several."""
    given = {key: text for key in REASONING_KEYS if (text := _read_text(message, key).strip(around))}
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


def _given_calls(message: Mapping[str, Any]) -> list[Any]:
    """The values of the calls of `tool_calls`, or the one of `function_call`, as OpenAI had it before."""
    calls = _read_list(message.get("tool_calls"), "a message's tool_calls")
    alone = message.get("function_call")
    if not alone:
        return calls
    if calls:
        raise BadRow("a message has tool_calls and a function_call; keep one of them")
    return [from_json(alone, "a message's function_call") if isinstance(alone, str) else alone]


def _read_call(call: Any, tools: tuple[ToolSpec, ...]) -> ToolCall:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    given = (_under_one(ARGUMENT_KEYS, call, function) or {}) if isinstance(function, Mapping) else None
    arguments = from_json(given, "a call's arguments") if isinstance(given, str) else given
    if not isinstance(name, str) or not name or not isinstance(arguments, Mapping):
        raise BadRow(f"a tool call needs a name and arguments as an object, got {call!r:.300}")
    if not given and any(value and isinstance(value, Mapping) for value in function.values()):  # type: ignore[union-attr]
        raise BadRow(f"a tool call's arguments must stand under {ARGUMENT_KEYS[0]}, got {call!r:.300}")
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
    description, given = function.get("description") or "", _under_one(SCHEMA_KEYS, tool, function) or {}
    parameters = from_json(given, f"the parameters of tool {name}") if isinstance(given, str) else given
    if not isinstance(description, str) or not isinstance(parameters, Mapping):
        raise BadRow(f"tool {name} needs a description as text and parameters as an object, got {tool!r:.300}")
    try:
        return ToolSpec(name, description, schema_without_filling(parameters))
    except RecursionError:
        raise BadRow(f"the parameters of tool {name} are nested too deeply") from None


def _under_one(keys: Sequence[str], outer: Mapping[str, Any], inner: Mapping[str, Any]) -> Any:
    """What a call or tool has under one of these keys, inside `function` or beside it. Raises `BadRow`."""
    found = [(key, part[key]) for part in (inner, outer) for key in keys if part.get(key)]
    if any(value != found[0][1] for _, value in found):
        names = " and ".join(dict.fromkeys(key for key, _ in found))
        raise BadRow(f"{inner.get('name')} has {names} that differ; keep one of them")
    return found[0][1] if found else None


def _read_list(value: Any, what: str) -> list[Any]:
    """A list, which may be missing or JSON text."""
    read = from_json(value, what) if isinstance(value, str) and value.strip() else value or []
    if not isinstance(read, list):
        raise BadRow(f"{what} must be a list, or its JSON text, got {type(read).__name__}")
    return read
