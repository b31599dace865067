"""What must a chat format implement: how does a conversation become text, and the text of a reply a `Reply`?

This module handles only text, without a tokenizer. A rendering is a sequence of pieces: a `Token` is a control token of
the tokenizer, a plain `str` is ordinary text. Text from users, tools and policies is always plain, so it can never
become a control token. A reply is parsed by its control tokens, never by text that looks like them.

Formats only append: the reasoning of earlier turns stays in the history. (The published Nemotron template can delete
it; a turn's prompt would then not begin with the tokens that were sampled before it.)
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, Self

from envs.errors import InputError
from envs.messages import Message, Reply, ToolSpec
from rl.config.budgets import budget_text
from rl.data_types import Budget

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class ChatError(InputError):
    """The chat format cannot express a conversation, or a tokenizer does not fit the format."""


@dataclass(frozen=True, slots=True)
class Token:
    """One control token, by its text."""

    text: str


Pieces = tuple[Token | str, ...]


class ChatFormat(Protocol):
    """A chat format. With budget `off` the policy may not think.

    A format is a file in `rl/chat/formats/` and an entry of `CHAT_FORMATS` there; `policy.chat` names it. Other code
    uses its properties and never compares its name.
    """

    has_tools: bool
    """Whether the format can describe and call tools. If not, `tools` is always empty."""
    has_thinking: bool
    """Whether a reply has a think block, so that budgets other than `unlimited` are possible."""
    tokens: tuple[Token, ...]
    """Control tokens that the tokenizer must have."""
    template: str
    """A jinja template that renders conversations as this format does, for tokenizers that have none."""
    end_of_turn: Token
    """Control token that ends a reply."""
    end_of_thinking: Token | None
    """Control token that ends the reasoning of a reply; None without a think block."""

    @classmethod
    def for_tokenizer(cls, tokenizer: "PreTrainedTokenizerFast") -> Self:
        """The format for this checkpoint's tokenizer. Raises `ChatError` if the tokenizer lacks what the format needs.

        The caller checks that all of `tokens` exist.
        """
        ...

    @classmethod
    def for_new_tokenizer(cls) -> Self:
        """The format of a policy that is built; its tokenizer gets `tokens`.

        Raises `ChatError` for a format that only a checkpoint can define.
        """
        ...

    def opening(self, messages: Sequence[Message], tools: Sequence[ToolSpec], budget: Budget) -> Pieces:
        """The first prompt, up to where the policy writes. Texts and JSON Schemas may be anything."""
        ...

    def follow_up(self, messages: Sequence[Message], budget: Budget) -> Pieces:
        """The pieces between a reply's end-of-turn token and where the policy writes next."""
        ...

    def reply(self, reply: Reply, budget: Budget) -> Pieces:
        """What a policy would write for this reply, without the end-of-turn token.

        Raises `ChatError` if `parse` could not read it back.
        """
        ...

    def parse(self, pieces: Pieces, tools: Sequence[ToolSpec], budget: Budget) -> Reply:
        """The inverse of `reply`, in time linear in the pieces. Never raises: a policy may write anything."""
        ...


def with_budget(messages: Sequence[Message], budget: Budget) -> list[Message]:
    """The messages, with the budget told at the end of the last one of the user."""
    last = max((index for index, message in enumerate(messages) if message.role == "user"), default=-1)
    return [
        replace(message, content=message.content + budget_text(budget)) if index == last else message
        for index, message in enumerate(messages)
    ]


def json_text(value: object, what: str, *, compact: bool = False, ascii: bool = True, nan: bool = True) -> str:
    """JSON of a value from an environment or a dataset. Raises `ChatError` naming `what` if JSON cannot hold it."""
    try:
        separators = (",", ":") if compact else None
        return json.dumps(value, separators=separators, ensure_ascii=ascii, allow_nan=nan)
    except (TypeError, ValueError, RecursionError) as error:
        raise ChatError(f"{what} cannot be written as JSON: {type(error).__name__}: {error}") from None


def plain_text(pieces: Iterable[Token | str]) -> str:
    """The pieces as one text, control tokens by their names."""
    return "".join(piece.text if isinstance(piece, Token) else piece for piece in pieces)


def conversation_text(
    format: ChatFormat, messages: Sequence[Message], tools: Sequence[ToolSpec], budget: Budget
) -> str:
    """A whole conversation and the opening of one more turn as text, to train a tokenizer on."""
    return plain_text(format.opening(messages, tools if format.has_tools else (), budget))
