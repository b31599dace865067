"""How does vLLM's OpenAI-compatible server answer a conversation as the policy was trained: prompt, budget, reply?

Prompts are the ids that a rollout of the same conversation would have, not what the template renders for the whole of
it: replies of the policy stay as they are written, with their reasoning. The thinking budget is told and enforced by
the rule of `rl.chat.budget`.
"""

import asyncio
from typing import Any

from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.inputs import tokens_input

from envs.chat_completions import MALFORMED, read_messages, read_tools
from envs.errors import named
from envs.messages import ToolSpec
from rl.chat.chat import Chat
from rl.chat.format import ChatError
from rl.config.environments import BudgetConfig
from rl.data_types import EFFORTS, Budget
from rl.engine.budget_processor import as_argument
from rl.engine.endpoint.reply_parser import ReplyParser


class PolicyChat(OpenAIServingChat):
    """Chat completions of one policy."""

    def __init__(self, served: OpenAIServingChat, chat: Chat, enforcement: BudgetConfig) -> None:
        """Takes over what vLLM made of its arguments."""
        vars(self).update(vars(served))
        self.parser_cls, self.enable_auto_tools = ReplyParser, chat.has_tools
        self._include_reasoning_tokens_details = chat.has_thinking
        self._chat, self._enforcement = chat, enforcement

    def _make_parser(self, request: ChatCompletionRequest, *_: Any, **__: Any) -> ReplyParser:
        return ReplyParser(self._chat.reply_stream(_tools(request), _budget(request)))

    async def render_chat_request(self, request: ChatCompletionRequest) -> Any:
        """The prompt as vLLM takes it, with no conversation, which only `echo` would need; or an error."""
        if error := await self._check_model(request):
            return error
        self._preflight(request.n or 1)
        try:
            ids = await asyncio.to_thread(self._prompt, request)
        except (ChatError, *MALFORMED) as error:
            return self.create_error_response(str(error) if isinstance(error, ChatError) else named(error))
        return [], [tokens_input(ids)]

    def _prompt(self, request: ChatCompletionRequest) -> list[int]:
        """Ids of the prompt. Writes the budget and the stop tokens into the request. Raises `ChatError`."""
        budget, tools = _budget(request), _tools(request)
        _check(request, self._chat, budget)
        dialogue = self._chat.continued(read_messages(request.messages), tools, budget)  # type: ignore[arg-type]
        room = self.model_config.max_model_len - len(dialogue.prompt_ids)
        if room < 1:
            raise ChatError(
                f"the conversation has {len(dialogue.prompt_ids)} tokens, but the endpoint takes at most"
                f" {self.model_config.max_model_len} with the reply (rl serve --max-tokens)"
            )
        asked = request.max_completion_tokens or request.max_tokens or room
        if limit := dialogue.thinking_limit(self._enforcement, min(asked, room)):
            request.vllm_xargs = {**(request.vllm_xargs or {}), **as_argument(limit)}  # type: ignore[dict-item]
        request.thinking_token_budget = None  # vLLM's own rule is another one
        # Parsers of streams and further choices are made of the request later: it must still tell whether it thinks.
        request.chat_template_kwargs = {**(request.chat_template_kwargs or {}), "enable_thinking": budget != "off"}
        request.stop_token_ids = [*(request.stop_token_ids or ()), *self._chat.stop_ids]
        return list(dialogue.prompt_ids)


def _tools(request: ChatCompletionRequest) -> tuple[ToolSpec, ...]:
    if not request.tools or request.tool_choice == "none":
        return ()
    return tuple(read_tools(tool.model_dump() for tool in request.tools))


def _budget(request: ChatCompletionRequest) -> Budget:
    """`thinking_token_budget`, or the effort of `reasoning_effort`, also as an argument of the template; `off` for 0,
    `none` and the template's `enable_thinking: false`. Raises `ChatError`.
    """
    named = request.chat_template_kwargs or {}
    effort, num_tokens = request.reasoning_effort or named.get("reasoning_effort"), request.thinking_token_budget
    if num_tokens == 0 or named.get("enable_thinking") is False or effort == "none":
        return "off"
    if effort is None:
        return num_tokens or "unlimited"
    if effort not in EFFORTS:
        raise ChatError(f"reasoning_effort must be none or one of {', '.join(EFFORTS)}, got {effort!r}")
    if num_tokens is not None:
        raise ChatError(
            "the request has thinking_token_budget and reasoning_effort, but a policy is told one of them: remove one"
        )
    return effort


def _check(request: ChatCompletionRequest, chat: Chat, budget: Budget) -> None:
    """Raises `ChatError` for what this policy or this endpoint cannot do."""
    if request.tools and request.tool_choice not in (None, "none", "auto"):
        raise ChatError("tool_choice must be auto or none: the policy decides whether it calls a tool")
    if budget in EFFORTS and not chat.has_thinking:
        raise ChatError("reasoning_effort needs a chat format with a think block, and this policy's has none")
    kind = request.response_format.type if request.response_format else "text"
    if kind != "text" and chat.has_thinking and budget != "off":
        raise ChatError(
            f"response_format {kind} constrains a reply from its first token on; switch thinking off with"
            " reasoning_effort: none"
        )
