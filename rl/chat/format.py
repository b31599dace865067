"""How does a conversation become text, and the text of a reply a `Reply`? Pure text: no tokenizer here.

A rendering is a sequence of pieces: `Token` is a control token of the tokenizer, a plain `str` is ordinary text. What
users, tools and policies wrote is always plain, so it can never become a control token, and a reply is parsed by its
control tokens, never by text that merely looks like them.

Formats only ever append: the reasoning of earlier turns stays in the history. (The published Nemotron template
can delete it; then a turn's prompt would not begin with the tokens that were sampled before it.)
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from envs.messages import Message, Reply, ToolSpec
from rl.data_types import Budget


class ChatError(ValueError):
    """A conversation that the chat format cannot express, or a tokenizer that cannot carry the format."""


@dataclass(frozen=True, slots=True)
class Token:
    """One control token, by its text."""

    text: str


Pieces = tuple[Token | str, ...]


class Format(Protocol):
    """What `rl.chat.chat.Chat` needs from a format. With budget `off` the policy may not think."""

    tokens: tuple[Token, ...]
    """Control tokens that the tokenizer must have."""
    end_of_turn: Token
    """What ends a reply."""
    end_of_thinking: Token | None
    """What ends the reasoning of a reply; None where there is none, and so no budget."""

    def opening(self, messages: Sequence[Message], tools: Sequence[ToolSpec], budget: Budget) -> Pieces:
        """The first prompt, up to where the policy writes."""
        ...

    def follow_up(self, messages: Sequence[Message], budget: Budget) -> Pieces:
        """What stands between a reply's end-of-turn token and where the policy writes next."""
        ...

    def reply(self, reply: Reply, budget: Budget) -> Pieces:
        """What a policy would write to say this, without the end-of-turn token."""
        ...

    def parse(self, pieces: Pieces, tools: Sequence[ToolSpec], budget: Budget) -> Reply:
        """The inverse of `reply`. Never raises: a policy may write anything."""
        ...


def plain_text(pieces: Iterable[Token | str]) -> str:
    """The pieces as one text, control tokens by their names."""
    return "".join(piece.text if isinstance(piece, Token) else piece for piece in pieces)
