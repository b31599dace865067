"""How is a checkpoint's own jinja chat template used as a chat format, for policies without Nemotron's tokens?"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, ClassVar

from envs.messages import Message, Reply, ToolSpec
from rl.chat.format import ChatError, Pieces, Token, plain_text
from rl.data_types import Budget

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class TemplateFormat:
    """The jinja chat template that comes with a checkpoint. No tools and no think block: all of a reply is text.

    `render(messages, add_generation_prompt)` applies the template to OpenAI-like dicts and returns text. Contents are
    put into the rendered text afterwards, in place of marks, so that they stay plain. A follow-up turn is what the
    template renders after a marked assistant message. Raises `ChatError` if the template does not close a reply with a
    special token, or changes what it rendered before. Gold replies lose their reasoning, because there is no place for
    it.
    """

    has_tools: ClassVar[bool] = False
    has_thinking: ClassVar[bool] = False

    def __init__(self, render: Callable[[list[dict[str, str]], bool], str], special_tokens: Iterable[str]) -> None:
        self._render = render
        self._special = re.compile("|".join(re.escape(text) for text in sorted(special_tokens, key=len, reverse=True)))
        after_reply = self._after_reply([Message("user", "x")])
        if not after_reply or not isinstance(after_reply[0], Token):
            raise ChatError("the chat template does not end an assistant message with a special token")
        self.end_of_turn: Token = after_reply[0]
        self.end_of_thinking: Token | None = None
        self.tokens: tuple[Token, ...] = (self.end_of_turn,)

    @classmethod
    def for_tokenizer(cls, tokenizer: "PreTrainedTokenizerFast") -> "TemplateFormat":
        if not tokenizer.chat_template:
            raise ChatError("the tokenizer has no chat template")

        def render(messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
            try:
                text = tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=add_generation_prompt
                )
            except Exception as error:  # a template is a program, and many refuse some orders of roles
                roles = ", ".join(message["role"] for message in messages)
                raise ChatError(f"the chat template refuses messages of the roles {roles}: {error}") from None
            return str(text)

        special = [token.content for token in tokenizer.backend_tokenizer.get_added_tokens_decoder().values()]
        return cls(render, special)

    @classmethod
    def for_new_tokenizer(cls) -> "TemplateFormat":
        raise ChatError("a policy that is built has no chat template of its own")

    def opening(self, messages: Sequence[Message], tools: Sequence[ToolSpec], budget: Budget) -> Pieces:
        return self._pieces(self._render(_marked(messages), True), messages)

    def follow_up(self, messages: Sequence[Message], budget: Budget) -> Pieces:
        return self._after_reply(messages)[1:]

    def reply(self, reply: Reply, budget: Budget) -> Pieces:
        if reply.tool_calls:
            raise ChatError("this chat format has no tool calls")
        return (reply.text,)

    def parse(self, pieces: Pieces, tools: Sequence[ToolSpec], budget: Budget) -> Reply:
        return Reply(plain_text(pieces))

    def _after_reply(self, messages: Sequence[Message]) -> Pieces:
        before = [Message("user", ""), Message("assistant", "")]
        text = self._render(_marked([*before, *messages]), True)
        _, mark, rest = text.partition(_mark(1))
        if not mark:
            raise ChatError("the chat template leaves out an assistant message")
        return self._pieces(rest, [*before, *messages])

    def _pieces(self, text: str, messages: Sequence[Message]) -> Pieces:
        """Rendered text taken apart into special tokens, template text, and contents in place of their marks."""
        pieces: list[Token | str] = []
        for part in re.split(f"({_MARK.pattern}|{self._special.pattern})", text):
            if mark := _MARK.fullmatch(part):
                pieces.append(messages[int(part[1:-1])].content)
            else:
                pieces.append(Token(part) if mark is None and self._special.fullmatch(part) else part)
        return tuple(piece for piece in pieces if piece != "")


_MARK = re.compile("\ue000[0-9]+\ue001")  # private-use characters, which no template writes


def _mark(index: int) -> str:
    return f"\ue000{index}\ue001"


def _marked(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": _mark(index)} for index, message in enumerate(messages)]
