"""How does a conversation become token ids, and token ids a reply? The only user of the tokenizer.

Ids are only ever appended: every call encodes the new text alone, so no merge crosses an edge between turns, and the
prompt of turn k+1 begins with the prompt and the reply of turn k, exactly as sampled. Supervised training and
reinforcement learning take their tokens from here and therefore see the same ones.
"""

import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tokenizers import Tokenizer

from envs.messages import Message, Reply, ToolSpec
from rl.chat.budget import ThinkingLimit
from rl.chat.format import ChatError, Format, Pieces, Token
from rl.chat.formats.nemotron import NemotronFormat
from rl.chat.formats.template import TemplateFormat
from rl.config.environments import BudgetConfig
from rl.data_types import Budget

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Ids = tuple[int, ...]
_EXACT = " a\n\n<b> 12 é  \t👍"  # must survive encoding and decoding


class Chat:
    """Turns messages into ids and back, in one format with one tokenizer. Threads may share it.

    Raises `ChatError` when the tokenizer lacks a control token of the format, or changes text.
    """

    stop_ids: tuple[int, ...]
    """Ids that end a reply; the reply includes the one it ended with."""
    pad_id: int
    """Fills rows of a batch. May be equal to a real token: masks never depend on it."""

    def __init__(self, tokenizer: "PreTrainedTokenizerFast", format: Format) -> None:
        self._format = format
        self._tokenizer = tokenizer.backend_tokenizer
        self._plain = _without_added_tokens(self._tokenizer)
        self._added = {id: token.content for id, token in self._tokenizer.get_added_tokens_decoder().items()}
        self._ids = {text: id for id, text in self._added.items()}
        missing = [token.text for token in format.tokens if token.text not in self._ids]
        if missing:
            raise ChatError(f"the tokenizer has no token {', '.join(missing)}; try policy.chat: template")
        for text in (_EXACT, *self._ids):
            ids = self._encode((text,))
            if self._decode(ids) != (text,):
                raise ChatError(f"the tokenizer changes plain text: {text!r} becomes {self._decode(ids)!r}")
        end_of_turn = self._ids[format.end_of_turn.text]
        eos = self._ids.get(str(tokenizer.eos_token), end_of_turn)
        self.stop_ids = (end_of_turn,) if eos == end_of_turn else (end_of_turn, eos)
        self.pad_id = self._ids.get(str(tokenizer.pad_token), end_of_turn)

    def open(self, messages: Sequence[Message], tools: Sequence[ToolSpec], budget: Budget) -> Ids:
        """The first prompt. Raises `ChatError` when the format cannot express it (tools in a template)."""
        return self._encode(self._format.opening(messages, tools, budget))

    def extend(self, new_messages: Sequence[Message], budget: Budget, reply_ends_closed: bool) -> Ids:
        """What is appended after a sampled reply: its end, the new messages, and the next opening for the policy.

        `reply_ends_closed` says whether the reply ended with a stop token; if it was cut off, one is added here.
        """
        end = () if reply_ends_closed else (self._format.end_of_turn,)
        return self._encode((*end, *self._format.follow_up(new_messages, budget)))

    def parse(self, reply_ids: Sequence[int], tools: Sequence[ToolSpec], budget: Budget) -> Reply:
        """The reply that was sampled. Never raises; tool calls that cannot be read are told in `Reply.malformed`."""
        ends = bool(reply_ids) and reply_ids[-1] in self.stop_ids
        return self._format.parse(self._decode(reply_ids[:-1] if ends else reply_ids), tools, budget)

    def reply_ids(self, reply: Reply, budget: Budget) -> Ids:
        """What a policy would sample to say this, stop token included. Raises `ChatError` where it cannot be said."""
        return self._encode((*self._format.reply(reply, budget), self._format.end_of_turn))

    def thinking_limit(self, budget: Budget, enforcement: BudgetConfig, room: int) -> ThinkingLimit | None:
        """What the budget means for a reply of at most `room` tokens; None where nothing is to be enforced.

        `enforcement.answer_tokens` of the room are left for the answer, also where the budget would leave fewer. Raises
        `ChatError` for a budget in tokens where the format has no think block.
        """
        if not isinstance(budget, int):
            return None
        if self._format.end_of_thinking is None:
            raise ChatError("a thinking budget needs a chat format with a think block; take chat: nemotron")
        closing_ids = self._encode((enforcement.closing_text, self._format.end_of_thinking))
        most = max(1, room - len(closing_ids) - enforcement.answer_tokens)
        num_tokens = min(budget, most)
        return ThinkingLimit(
            num_tokens=num_tokens,
            grace_tokens=min(enforcement.grace_tokens, most - num_tokens),
            closing_ids=closing_ids,
            end_id=closing_ids[-1],
            line_end_ids=self._line_end_ids,
        )

    def num_reasoning_tokens(self, reply: Reply) -> int:
        """Tokens of the reply's reasoning, without what ends it."""
        return len(self._encode((reply.reasoning + "\n",)))

    def conversation(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSpec],
        budget: Budget,
        limit: ThinkingLimit | None = None,
    ) -> tuple[Ids, tuple[bool, ...]]:
        """Ids of a whole conversation and, for each, whether the policy would have sampled it.

        Replies whose reasoning is longer than `limit` are cut as the engine would have cut them. Raises `ChatError`
        unless assistant messages and others alternate and the last message is the assistant's.
        """
        ids: list[int] = []
        loss_mask: list[bool] = []
        if not messages or messages[0].role == "assistant" or messages[-1].role != "assistant":
            raise ChatError("a conversation must begin with a user's or system message and end with the assistant's")
        for mine, group in groupby(messages, lambda message: message.role == "assistant"):
            said, *more = group
            if mine and more:
                raise ChatError("two assistant messages follow each other")
            if mine:
                new = self.reply_ids(Reply(said.content, said.reasoning, said.tool_calls), budget)
                new = limit.cut(new) if limit else new
                loss_mask += [not forced for forced in limit.forced_mask(new)] if limit else [True] * len(new)
            elif ids:
                new = self.extend((said, *more), budget, reply_ends_closed=True)
            else:
                new = self.open((said, *more), tools, budget)
            ids += new
            loss_mask += [False] * (len(ids) - len(loss_mask))
        return tuple(ids), tuple(loss_mask)

    def text(self, ids: Sequence[int]) -> str:
        """Ids as readable text, control tokens included; for people and logs only."""
        return "".join(piece.text if isinstance(piece, Token) else piece for piece in self._decode(ids))

    def token_texts(self) -> list[str]:
        """The text of every token by its id, for people only: a token may be a part of a character."""
        return [self.text((token,)) for token in range(self._tokenizer.get_vocab_size())]

    @cached_property
    def _line_end_ids(self) -> frozenset[int]:
        """Tokens of ordinary text that end with a line break."""
        ids = range(self._tokenizer.get_vocab_size())
        return frozenset(id for id in ids if id not in self._added and self._plain.decode([id]).endswith("\n"))

    def _encode(self, pieces: Pieces) -> Ids:
        ids: list[int] = []
        for control, group in groupby(pieces, lambda piece: isinstance(piece, Token)):
            if control:
                ids += [self._ids[piece.text] for piece in group if isinstance(piece, Token)]
            else:
                text = "".join(piece for piece in group if isinstance(piece, str))
                ids += self._plain.encode(text, add_special_tokens=False).ids
        return tuple(ids)

    def _decode(self, ids: Iterable[int]) -> Pieces:
        pieces: list[Token | str] = []
        for control, group in groupby(ids, lambda id: id in self._added):
            if control:
                pieces += [Token(self._added[id]) for id in group]
            else:
                pieces.append(self._plain.decode(list(group), skip_special_tokens=False))
        return tuple(pieces)


def _without_added_tokens(tokenizer: Tokenizer) -> Tokenizer:
    """The same tokenizer to which `<|im_end|>` and its like are text like any other."""
    state = json.loads(tokenizer.to_str())
    state.update(added_tokens=[], post_processor=None, truncation=None, padding=None)
    return Tokenizer.from_str(json.dumps(state))


def load_chat(policy_folder: Path, style: Literal["nemotron", "template"]) -> Chat:
    """The chat of the checkpoint in this folder.

    Raises `ChatError` when the folder has no fast tokenizer, or the tokenizer does not fit the style.
    """
    from transformers import AutoTokenizer  # takes seconds to import

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(policy_folder), local_files_only=True)
        if not hasattr(tokenizer, "backend_tokenizer"):
            raise ChatError(f"{policy_folder}: the tokenizer has no tokenizer.json (only fast tokenizers can be used)")
    except (OSError, ValueError) as error:
        raise ChatError(f"{policy_folder}: cannot load the tokenizer: {error}") from error
    try:
        return Chat(tokenizer, _template_format(tokenizer) if style == "template" else NemotronFormat())
    except ChatError as error:
        raise ChatError(f"{policy_folder}: {error}") from None


def _template_format(tokenizer: "PreTrainedTokenizerFast") -> TemplateFormat:
    if not tokenizer.chat_template:
        raise ChatError("the tokenizer has no chat template; try policy.chat: nemotron")

    def render(messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
        return str(text)

    special = [token.content for token in tokenizer.backend_tokenizer.get_added_tokens_decoder().values()]
    return TemplateFormat(render, special)
