"""How does the tokenizer encode text and decode ids? This is the only module that calls the tokenizer.

Control tokens are separate from ordinary text: the text `<|im_end|>` is encoded as text, never as the control token.
"""

import json
from collections.abc import Iterable, Mapping
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from envs.messages import valid_text
from rl.chat.format import ChatError, Pieces, Token

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Ids = tuple[int, ...]
_EXACT = " a\n\n<b> 12 é  \t👍"  # must survive encoding and decoding


class TokenText:
    """Encodes and decodes pieces of text with one tokenizer. Threads may share it.

    Raises `ChatError` when the tokenizer lacks one of the control tokens, or changes text.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerFast", needed: Iterable[Token]) -> None:
        self._tokenizer = tokenizer.backend_tokenizer
        self._plain = _without_added_tokens(self._tokenizer)
        self._added = {id: token.content for id, token in self._tokenizer.get_added_tokens_decoder().items()}
        self._ids = {text: id for id, text in self._added.items()}
        missing = [token.text for token in needed if token.text not in self._ids]
        if missing:
            raise ChatError(f"the tokenizer has no token {', '.join(missing)}")
        for text in (_EXACT, *self._ids):
            ids = self.encode((text,))
            if self.decode(ids) != (text,):
                raise ChatError(f"the tokenizer changes plain text: {text!r} becomes {self.decode(ids)!r}")

    def control_id(self, text: object) -> int | None:
        """The id of the control token with this text, None when there is none."""
        return self._ids.get(str(text))

    def is_control(self, id: int) -> bool:
        """Whether the id is that of a control token."""
        return id in self._added

    def encode(self, pieces: Pieces) -> Ids:
        """Ids of the pieces. Text between two control tokens is encoded at once; invalid text is made valid."""
        ids: list[int] = []
        for control, group in groupby(pieces, lambda piece: isinstance(piece, Token)):
            if control:
                ids += [self._ids[piece.text] for piece in group if isinstance(piece, Token)]
            else:
                text = valid_text("".join(piece for piece in group if isinstance(piece, str)))
                ids += self._plain.encode(text, add_special_tokens=False).ids
        return tuple(ids)

    def decode(self, ids: Iterable[int]) -> Pieces:
        pieces: list[Token | str] = []
        for control, group in groupby(ids, lambda id: id in self._added):
            if control:
                pieces += [Token(self._added[id]) for id in group]
            else:
                pieces.append(self._plain.decode(list(group), skip_special_tokens=False))
        return tuple(pieces)

    def run(self) -> "TokenRun":
        """Decodes tokens one after the other."""
        return TokenRun(self._plain, self._added)

    @property
    def num_tokens(self) -> int:
        """Size of the vocabulary."""
        return self._tokenizer.get_vocab_size()

    @cached_property
    def line_end_ids(self) -> frozenset[int]:
        """Tokens of ordinary text that end with a line break."""
        ids = range(self.num_tokens)
        return frozenset(id for id in ids if id not in self._added and self._plain.decode([id]).endswith("\n"))


class TokenRun:
    """Decodes tokens as they come; the texts add up to `TokenText.decode` of all of them.

    The bytes of a character may be spread over several tokens, so a text may come a few tokens late.
    """

    MOST_WAITING = 16
    """Tokens without a whole character after which they are invalid, not unfinished."""

    def __init__(self, plain: Tokenizer, added: Mapping[int, str]) -> None:
        self._plain, self._added = plain, added
        self._before: list[int] = []
        """The last tokens that were told: what a decoder does to a text can depend on what stands before it."""
        self._waiting: list[int] = []

    def add(self, id: int) -> str:
        """The text that became whole with this token."""
        if id in self._added:
            text = self.rest() + self._added[id]
            self._before = []
            return text
        self._waiting.append(id)
        text = self._decoded()
        if text.endswith("\ufffd") and len(self._waiting) < self.MOST_WAITING:
            return ""
        self._before, self._waiting = self._waiting, []
        return text

    def rest(self) -> str:
        """The text of tokens that are still waiting."""
        text = self._decoded() if self._waiting else ""
        self._before, self._waiting = self._waiting or self._before, []
        return text

    def _decoded(self) -> str:
        decode = self._plain.decode
        before = decode(self._before, skip_special_tokens=False) if self._before else ""
        return decode([*self._before, *self._waiting], skip_special_tokens=False)[len(before) :]


def _without_added_tokens(tokenizer: Tokenizer) -> Tokenizer:
    """The same tokenizer, to which `<|im_end|>` and the like are ordinary text."""
    state = json.loads(tokenizer.to_str())
    state.update(added_tokens=[], post_processor=None, truncation=None, padding=None)
    return Tokenizer.from_str(json.dumps(state))
