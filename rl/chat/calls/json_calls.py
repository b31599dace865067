"""How are tool calls written and read as JSON objects: `{"name": NAME, "arguments": {...}}`?

`HermesCalls` puts each object between `<tool_call>` and `</tool_call>` (Qwen2.5, Qwen3, Hermes). `BareCalls` is the
object alone, with `parameters` in place of `arguments`, and it is the whole reply (Llama 3.1 and 3.2). JSON has types,
so the tool's schema is not needed to read a value.
"""

import json
from collections.abc import Sequence

from envs.messages import ToolCall, ToolSpec
from rl.chat.calls.parameter_values import UnreadableValue, read_json
from rl.chat.calls.style import CALL, CALL_END, MalformedCall, read_bracketed
from rl.chat.format import ChatError, Pieces, Token, json_text, plain_text

PYTHON_TAG = "<|python_tag|>"
"""Llama writes this control token before some calls."""


class HermesCalls:
    """Any number of calls, each between `<tool_call>` and `</tool_call>`."""

    tokens: tuple[Token, ...] = (CALL, CALL_END)

    def write(self, call: ToolCall) -> Pieces:
        return (CALL, "\n" + _text(call, "arguments") + "\n", CALL_END)

    def read(self, pieces: Pieces, tools: Sequence[ToolSpec]) -> tuple[str, tuple[ToolCall, ...]]:
        return read_bracketed(pieces, lambda text: _read(text, "arguments"))


class BareCalls:
    """One call, which is the whole reply. A reply is read as a call if it begins like one."""

    tokens: tuple[Token, ...] = ()

    def write(self, call: ToolCall) -> Pieces:
        return (_text(call, "parameters"),)

    def read(self, pieces: Pieces, tools: Sequence[ToolSpec]) -> tuple[str, tuple[ToolCall, ...]]:
        text = plain_text(pieces)
        said = text.removeprefix(PYTHON_TAG).strip()
        if not said.startswith("{") or not said[1:].lstrip().startswith('"name"'):
            return text, ()
        return "", (_read(said, "parameters"),)


def _text(call: ToolCall, key: str) -> str:
    """The object as the published templates write it. Raises `ChatError` for an argument that JSON cannot hold."""
    arguments = json_text(dict(call.arguments), f"the arguments of a call of {call.name}", ascii=False, nan=False)
    if not call.name or json.dumps(call.name, ensure_ascii=False) != f'"{call.name}"':
        raise ChatError(f"a call of {call.name!r} cannot be written: the name is empty or needs quoting in JSON")
    return f'{{"name": "{call.name}", "{key}": {arguments}}}'


def _read(text: str, key: str) -> ToolCall:
    """Raises `MalformedCall`."""
    try:
        call = read_json(text)
    except UnreadableValue as error:
        raise MalformedCall(f"tool call cannot be read: {error}", "arguments") from None
    except ValueError as error:
        raise MalformedCall(f"tool call is not JSON: {error!s:.100}", "form") from None
    if not isinstance(call, dict) or call.keys() != {"name", key} or not isinstance(call["name"], str):
        raise MalformedCall(f'tool call does not read {{"name": NAME, "{key}": {{...}}}}', "form")
    if not isinstance(call[key], dict):
        raise MalformedCall(f"{key} of a tool call must be an object", "arguments")
    return ToolCall(call["name"], call[key])
