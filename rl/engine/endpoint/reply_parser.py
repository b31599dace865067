"""How does vLLM's OpenAI-compatible server tell a reply: reasoning, text and tool calls, whole or in parts?"""

import json
from collections.abc import Sequence
from typing import Any

from vllm.entrypoints.generate.base.protocol import DeltaFunctionCall, DeltaMessage, DeltaToolCall, FunctionCall
from vllm.parser import Parser
from vllm.renderers.chat_utils import make_tool_call_id
from vllm.tool_parsers import ToolParser

from envs.messages import Reply
from rl.chat.reply_stream import ReplyStream


class ReplyParser(Parser):
    """Parses by the chat format of the policy, from token ids; vLLM's text of the reply is not used.

    A call that cannot be read stays in the text, as the policy wrote it.
    """

    def __init__(self, stream: ReplyStream) -> None:
        # Not the parser's own __init__, which makes parsers of vLLM's.
        self._reasoning_parser = self._tool_parser = None
        self._stream = stream

    def is_reasoning_end(self, input_ids: list[int]) -> bool:
        return False  # asked only of parsers that are made of vLLM's

    def parse(
        self,
        model_output: str,
        request: Any,
        enable_auto_tools: bool = False,
        model_output_token_ids: Sequence[int] = (),
    ) -> tuple[str | None, str | None, list[FunctionCall] | None]:
        said, rest = self._stream.add(model_output_token_ids), self._stream.finish()
        calls = [FunctionCall(name=name, arguments=arguments) for name, arguments in _calls(rest)]
        text = said.text + rest.text
        return (said.reasoning + rest.reasoning) or None, text if text or not calls else None, calls

    def parse_delta(
        self,
        delta_text: str,
        delta_token_ids: list[int],
        request: Any,
        prompt_token_ids: list[int] | None = None,
        *,
        finished: bool,
    ) -> DeltaMessage | None:
        said = self._stream.add(delta_token_ids)
        rest = self._stream.finish() if finished else Reply("")
        told: dict[str, Any] = {}
        if reasoning := said.reasoning + rest.reasoning:
            told["reasoning"] = reasoning
        if text := said.text + rest.text:
            told["content"] = text
        if calls := _calls(rest):
            told["tool_calls"] = [
                DeltaToolCall(
                    index=index, id=make_tool_call_id(), function=DeltaFunctionCall(name=name, arguments=arguments)
                )
                for index, (name, arguments) in enumerate(calls)
            ]
        return DeltaMessage(**told) if told else None

    def count_reasoning_tokens(self, token_ids: Sequence[int]) -> int:
        return self._stream.num_reasoning_tokens


# After the class: while it is made, vLLM would otherwise make a parser of this kind. It only says that there are tools.
ReplyParser.tool_parser_cls = ToolParser


def _calls(reply: Reply) -> list[tuple[str, str]]:
    return [(call.name, json.dumps(dict(call.arguments), ensure_ascii=False)) for call in reply.tool_calls]
