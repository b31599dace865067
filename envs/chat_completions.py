"""How are conversations written and read as chat completions, the format of OpenAI-compatible endpoints?"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from envs.errors import shown
from envs.messages import Message, Reply, ToolCall, ToolSpec, valid

MALFORMED = (LookupError, ValueError, TypeError, AttributeError, RecursionError)
"""Errors from reading something that is not a chat completion or a request for one."""
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}


def openai_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The conversation in chat completion format; each tool message answers the next call that has no answer yet."""
    told: list[dict[str, Any]] = []
    waiting: list[str] = []
    for message in messages:
        entry: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.reasoning:  # only of endpoints that gave it, and these read it again
            entry["reasoning"] = message.reasoning
        if message.role == "assistant" and message.tool_calls:
            waiting = [f"call_{len(told)}_{place}" for place in range(len(message.tool_calls))]
            entry["tool_calls"] = [
                {"id": name, "type": "function",
                 "function": {"name": call.name, "arguments": json.dumps(dict(call.arguments))}}
                for name, call in zip(waiting, message.tool_calls, strict=True)
            ]  # fmt: skip
        elif message.role == "tool":
            entry["tool_call_id"] = waiting.pop(0) if waiting else "call_unknown"
        told.append(entry)
    return told


def openai_tools(tools: Sequence[ToolSpec]) -> list[dict[str, Any]]:
    """The tools in chat completion format."""
    return [
        {"type": "function", "function": {"name": tool.name, "description": tool.description,
                                          "parameters": dict(tool.parameters)}}
        for tool in tools
    ]  # fmt: skip


def read_reply(message: Mapping[str, Any]) -> Reply:
    """The reply in a chat completion; arguments that are not a JSON object are passed to the tool as they are.

    Raises one of `MALFORMED` for anything that is not a message.
    """
    calls = []
    for call in message.get("tool_calls") or ():
        try:
            arguments = json.loads(call["function"]["arguments"] or "{}")
        except (ValueError, RecursionError):
            arguments = None
        told = arguments if isinstance(arguments, dict) else {"arguments": call["function"]["arguments"]}
        calls.append(ToolCall(call["function"]["name"], told))
    reasoning = message.get("reasoning_content") or message.get("reasoning") or ""
    text = _text(message.get("content"))
    if not all(isinstance(call.name, str) for call in calls):
        raise TypeError(f"names of tools must be text, got {shown(message)}")
    return valid(Reply(text, str(reasoning), tuple(calls)))


def read_messages(messages: Iterable[Mapping[str, Any]]) -> list[Message]:
    """The conversation of a request. A tool message gets the name of the tool whose call it answers.

    Raises one of `MALFORMED` for what is not a conversation of texts.
    """
    read: list[Message] = []
    names: dict[object, str] = {}
    for number, message in enumerate(messages):
        if (role := ROLES.get(message["role"])) is None:
            raise ValueError(f"messages[{number}] has the role {message['role']!r}; roles: {', '.join(ROLES)}")
        if role == "assistant":
            calls = list(message.get("tool_calls") or ())
            reply = read_reply({**message, "tool_calls": calls})
            names |= {call.get("id"): said.name for call, said in zip(calls, reply.tool_calls, strict=True)}
            read.append(reply.as_message())
        else:
            name = names.get(message.get("tool_call_id"), message.get("name") or "") if role == "tool" else ""
            read.append(valid(Message(role, _text(message.get("content")), name=name)))  # type: ignore[arg-type]
    return read


def read_tools(tools: Iterable[Mapping[str, Any]]) -> list[ToolSpec]:
    """The tools of a request. Raises one of `MALFORMED`."""
    functions = [tool["function"] for tool in tools]
    return [
        valid(ToolSpec(one["name"], one.get("description") or "", one.get("parameters") or {"type": "object"}))
        for one in functions
    ]


def _text(content: object) -> str:
    """Content is text, null, or a list of parts, of which only texts can be read."""
    if content is None or isinstance(content, str):
        return content or ""
    parts = [] if isinstance(content, Mapping) or not isinstance(content, Iterable) else list(content)
    if not parts or not all(isinstance(part, Mapping) and part.get("type") == "text" for part in parts):
        raise TypeError(f"content must be text, or a list of parts of type text, got {shown(content)}")
    return "".join(str(part["text"]) for part in parts)
