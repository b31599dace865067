"""What is the chat format of the Nemotron 3 models? ChatML with think blocks and XML tool calls."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from envs.messages import Message, Reply, ToolCall, ToolSpec
from rl.chat.calls.style import CALL, CALL_END, MalformedCall
from rl.chat.calls.xml import XmlCalls, call_text, check_sayable
from rl.chat.format import ChatError, Pieces, Token, json_text, plain_text, with_budget
from rl.data_types import Budget

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

IM_START, IM_END = Token("<|im_start|>"), Token("<|im_end|>")
THINK, THINK_END = Token("<think>"), Token("</think>")
RESULT, RESULT_END = Token("<tool_response>"), Token("</tool_response>")
NEMOTRON_TOKENS = (IM_START, IM_END, THINK, THINK_END, CALL, CALL_END, RESULT, RESULT_END)
CALLS = XmlCalls()


class NemotronFormat:
    """The format of the Nemotron 3 models: ChatML with think blocks and XML tool calls (template `nano3.jinja`).

    The prompt opens the think block, or contains an empty one if thinking is off. A budget in tokens is stated at
    the end of the last user message. Tools are listed in the system message, more briefly than in the published
    template; results come back as a user turn. A reply that never closes its think block is all reasoning, with empty
    text. A value that contains the line `</parameter>` cannot be expressed in a tool call: the format has no quoting.
    """

    has_tools: bool = True
    has_thinking: bool = True
    tokens: tuple[Token, ...] = NEMOTRON_TOKENS
    template: str = Path(__file__).with_suffix(".jinja").read_text(encoding="utf-8")
    end_of_turn: Token = IM_END
    end_of_thinking: Token | None = THINK_END

    @classmethod
    def for_tokenizer(cls, tokenizer: "PreTrainedTokenizerFast") -> "NemotronFormat":
        return cls()

    @classmethod
    def for_new_tokenizer(cls) -> "NemotronFormat":
        return cls()

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
        for call in reply.tool_calls:
            check_sayable(call)
        return (*pieces, *_answer(reply.text, reply.tool_calls))

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
            text, calls = CALLS.read(pieces, tools)
        except MalformedCall as error:
            return Reply(plain_text(pieces), reasoning, malformed=str(error), malformed_kind=error.kind)
        return Reply(text.removesuffix("\n"), reasoning, calls)

    def _turns(self, messages: Sequence[Message], budget: Budget) -> Iterable[Token | str]:
        messages = with_budget(messages, budget)
        for index, message in enumerate(messages):
            if message.role == "tool":
                first = index == 0 or messages[index - 1].role != "tool"
                last = index + 1 == len(messages) or messages[index + 1].role != "tool"
                yield from (IM_START, "user\n") if first else ()
                yield from (RESULT, "\n" + message.content + "\n", RESULT_END, "\n")
                yield from (IM_END, "\n") if last else ()
            elif message.role == "assistant":
                yield from _generation_prompt(bool(message.reasoning))
                yield from (message.reasoning + "\n", THINK_END, "\n") if message.reasoning else ()
                yield from (*_answer(message.content, message.tool_calls), IM_END, "\n")
            else:
                yield from (IM_START, message.role + "\n", message.content, IM_END, "\n")


def _answer(text: str, calls: Sequence[ToolCall]) -> Iterable[Token | str]:
    """What follows the think block."""
    yield text
    for index, call in enumerate(calls):
        yield from ("\n" if text or index else "", CALL, call_text(call), CALL_END)


def _generation_prompt(thinking: bool) -> Pieces:
    return (IM_START, "assistant\n", THINK, *(("\n",) if thinking else (THINK_END,)))


def _tools_text(tools: Sequence[ToolSpec]) -> str:
    if not tools:
        return ""
    functions = (
        f"<function><name>{tool.name}</name><description>{tool.description}</description>"
        f"<parameters>{json_text(_brief_schema(tool.parameters), f'the schema of tool {tool.name}', compact=True)}"
        "</parameters></function>\n"
        for tool in tools
    )
    return f"# Tools\n<tools>\n{''.join(functions)}</tools>"


def _brief_schema(schema: object) -> object:
    """`{"name": "type"}` if the JSON schema says no more than that, else the schema itself.

    The schema may be anything that JSON can hold: with `properties: null`, a property that is `true`, and so on.
    """
    if not isinstance(schema, Mapping) or set(schema) - {"type", "properties", "required"}:
        return schema
    properties, required = schema.get("properties") or {}, schema.get("required") or []
    if not isinstance(properties, Mapping) or not isinstance(required, list | tuple):
        return schema
    says_only_types = all(isinstance(entry, Mapping) and set(entry) == {"type"} for entry in properties.values())
    if not says_only_types or len(required) != len(properties) or any(name not in required for name in properties):
        return schema
    return {name: entry["type"] for name, entry in properties.items()}
