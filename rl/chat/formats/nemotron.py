"""How do the Nemotron 3 models write conversations? ChatML with think blocks and XML tool calls."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from envs.messages import Message, Reply, ToolCall, ToolSpec
from rl.chat.format import ChatError, Pieces, Token, plain_text
from rl.data_types import Budget

IM_START, IM_END = Token("<|im_start|>"), Token("<|im_end|>")
THINK, THINK_END = Token("<think>"), Token("</think>")
CALL, CALL_END = Token("<tool_call>"), Token("</tool_call>")
RESULT, RESULT_END = Token("<tool_response>"), Token("</tool_response>")
NEMOTRON_TOKENS = (IM_START, IM_END, THINK, THINK_END, CALL, CALL_END, RESULT, RESULT_END)


class NemotronFormat:
    """The format of the Nemotron 3 models: ChatML with think blocks and XML tool calls (template `nano3.jinja`).

    The prompt opens the think block, or gives an empty one where thinking is off; a budget in tokens is told at the end
    of the last user message. Tools stand in the system message,
    more briefly than in the published template; results come back as a user turn.
    A reply that never closes its think block is all reasoning, with empty text. A value that contains the line
    `</parameter>` cannot be expressed in a tool call: the format quotes nothing.
    """

    tokens = NEMOTRON_TOKENS
    end_of_turn = IM_END
    end_of_thinking: Token | None = THINK_END

    def opening(self, messages: Sequence[Message], tools: Sequence[ToolSpec], budget: Budget) -> Pieces:
        pieces: list[Token | str] = []
        system = messages[0].content if messages and messages[0].role == "system" else ""
        if system or tools:
            parts = [part for part in (system, _tools_text(tools)) if part]
            pieces += [IM_START, "system\n", "\n\n".join(parts), IM_END, "\n"]
        rest = messages[1:] if system or (messages and messages[0].role == "system") else messages
        return (*pieces, *self._turns(rest, budget), *_generation_prompt(budget != "off"))

    def follow_up(self, messages: Sequence[Message], budget: Budget) -> Pieces:
        return ("\n", *self._turns(messages, budget), *_generation_prompt(budget != "off"))

    def reply(self, reply: Reply, budget: Budget) -> Pieces:
        if reply.reasoning and budget == "off":
            raise ChatError("the reply has reasoning, but its budget is 'off': remove the reasoning first")
        pieces: list[Token | str] = [reply.reasoning + "\n", THINK_END, "\n"] if budget != "off" else []
        pieces.append(reply.text)
        for index, call in enumerate(reply.tool_calls):
            pieces += ["\n" if reply.text or index else "", CALL, _call_text(call), CALL_END]
        return tuple(pieces)

    def parse(self, pieces: Pieces, tools: Sequence[ToolSpec], budget: Budget) -> Reply:
        reasoning = ""
        if budget != "off":
            if THINK_END not in pieces:
                return Reply("", reasoning=plain_text(pieces))
            end = pieces.index(THINK_END)
            reasoning = plain_text(pieces[:end]).removesuffix("\n")
            pieces = pieces[end + 1 :]
            if pieces and isinstance(pieces[0], str):
                pieces = (pieces[0].removeprefix("\n"), *pieces[1:])
        if not tools or not (CALL in pieces or CALL_END in pieces):
            return Reply(plain_text(pieces), reasoning)
        try:
            text, calls = _read_calls(pieces, tools)
        except _MalformedCall as error:
            return Reply(plain_text(pieces), reasoning, malformed=str(error))
        return Reply(text, reasoning, calls)

    def _turns(self, messages: Sequence[Message], budget: Budget) -> Iterable[Token | str]:
        last_of_user = max((index for index, message in enumerate(messages) if message.role == "user"), default=-1)
        for index, message in enumerate(messages):
            if message.role == "tool":
                first = index == 0 or messages[index - 1].role != "tool"
                last = index + 1 == len(messages) or messages[index + 1].role != "tool"
                yield from (IM_START, "user\n") if first else ()
                yield from (RESULT, "\n" + message.content + "\n", RESULT_END, "\n")
                yield from (IM_END, "\n") if last else ()
            elif message.role == "assistant":
                reply = Reply(message.content, message.reasoning, message.tool_calls)
                spent: Budget = "unlimited" if message.reasoning else "off"
                yield from (*_generation_prompt(spent != "off"), *self.reply(reply, spent), IM_END, "\n")
            else:
                told = _told(budget) if index == last_of_user else ""
                yield from (IM_START, message.role + "\n", message.content + told, IM_END, "\n")


def conversation_text(messages: Sequence[Message], tools: Sequence[ToolSpec], budget: Budget) -> str:
    """A whole conversation and the opening of one more turn as text, to train a tokenizer on."""
    return plain_text(NemotronFormat().opening(messages, tools, budget))


def _told(budget: Budget) -> str:
    """What the last user message says about the budget, in the words of the published template."""
    return f"\n\n{{thinking token budget: {budget}}}" if isinstance(budget, int) else ""


def _generation_prompt(thinking: bool) -> Pieces:
    return (IM_START, "assistant\n", THINK, *(("\n",) if thinking else (THINK_END,)))


def _tools_text(tools: Sequence[ToolSpec]) -> str:
    if not tools:
        return ""
    functions = (
        f"<function><name>{tool.name}</name><description>{tool.description}</description>"
        f"<parameters>{json.dumps(_brief_schema(tool.parameters), separators=(',', ':'))}</parameters></function>\n"
        for tool in tools
    )
    return f"# Tools\n<tools>\n{''.join(functions)}</tools>"


def _brief_schema(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """`{"name": "type"}` where the JSON schema says no more than that, else the schema itself."""
    properties = schema.get("properties", {})
    says_more = set(schema) - {"type", "properties", "required"} or any(set(p) != {"type"} for p in properties.values())
    if says_more or set(schema.get("required", ())) != set(properties):
        return schema
    return {name: value["type"] for name, value in properties.items()}


def _call_text(call: ToolCall) -> str:
    parameters = (
        f"<parameter={name}>\n{value if isinstance(value, str) else json.dumps(value)}\n</parameter>\n"
        for name, value in call.arguments.items()
    )
    return f"\n<function={call.name}>\n{''.join(parameters)}</function>\n"


class _MalformedCall(ValueError):
    pass


_FUNCTION = re.compile(r"\s*<function=([^>\n]+)>\n(.*)</function>\s*", re.DOTALL)
_PARAMETER = re.compile(r"\s*<parameter=([^>\n]+)>\n(.*?)\n</parameter>\n", re.DOTALL)


def _read_calls(pieces: Pieces, tools: Sequence[ToolSpec]) -> tuple[str, tuple[ToolCall, ...]]:
    """Text before the calls, and the calls. Raises `_MalformedCall`."""
    first = next(i for i, piece in enumerate(pieces) if piece in (CALL, CALL_END))
    calls: list[ToolCall] = []
    rest = list(pieces[first:])
    while rest:
        piece = rest.pop(0)
        if piece == CALL_END:
            raise _MalformedCall("</tool_call> closes no tool call")
        if piece != CALL:
            if plain_text([piece]).strip():
                raise _MalformedCall("text after a tool call")
            continue
        if CALL_END not in rest:
            raise _MalformedCall("tool call is not closed with </tool_call>")
        end = rest.index(CALL_END)
        calls.append(_read_call(rest[:end], tools))
        rest = rest[end + 1 :]
    return plain_text(pieces[:first]).removesuffix("\n"), tuple(calls)


def _read_call(pieces: Sequence[Token | str], tools: Sequence[ToolSpec]) -> ToolCall:
    if CALL in pieces:
        raise _MalformedCall("tool call inside a tool call")
    function = _FUNCTION.fullmatch(plain_text(pieces))
    if function is None:
        raise _MalformedCall("tool call does not read <function=NAME> ... </function>")
    name, body = function.groups()
    schema = next((tool.parameters for tool in tools if tool.name == name), {}).get("properties", {})
    arguments: dict[str, Any] = {}
    end = 0
    while parameter := _PARAMETER.match(body, end):
        key, value = parameter.groups()
        if key in arguments:
            raise _MalformedCall(f"parameter {key} is given twice")
        arguments[key] = _read_value(value, schema.get(key, {}).get("type", "string"))
        end = parameter.end()
    if body[end:].strip():
        raise _MalformedCall("arguments do not read <parameter=NAME> VALUE </parameter>, each on lines of its own")
    return ToolCall(name, arguments)


_JSON_TYPES: dict[str, tuple[type, ...]] = {
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "object": (dict,),
    "array": (list,),
}


def _read_value(text: str, kind: str) -> Any:
    """The value in the schema's type; text that is not of that type stays text, and the tool will say so."""
    if kind not in _JSON_TYPES:
        return text
    try:
        value = json.loads(text)
    except ValueError:
        return text
    fits = isinstance(value, _JSON_TYPES[kind]) and isinstance(value, bool) == (kind == "boolean")
    return value if fits else text
