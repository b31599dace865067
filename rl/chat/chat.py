"""How are conversations turned into tokens for a checkpoint: with which chat format and tokenizer?

The supervised stage and RL both use this module, so they train the same tokens.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from envs.messages import Message, Reply, ToolSpec
from rl.chat.dialogue import Dialogue
from rl.chat.format import ChatError, ChatFormat, plain_text
from rl.chat.formats import AUTO, CHAT_FORMATS, CHAT_NAMES
from rl.chat.reply_stream import ReplyStream
from rl.chat.token_text import Ids, TokenText
from rl.config.environments import BudgetConfig
from rl.data_types import Budget

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class Chat:
    """Creates dialogues in one format with one tokenizer. Threads may share it.

    Raises `ChatError` if the tokenizer lacks a control token of the format, or changes text.
    """

    stop_ids: Ids
    """Ids that end a reply; the reply includes its stop id."""
    pad_id: int
    """Padding id of batches. It may equal a real token, because masks never depend on it."""
    template: str
    """A jinja template that renders conversations as this chat does."""
    has_tools: bool
    """Whether the format can describe and call tools."""
    has_thinking: bool
    """Whether a reply has a think block, so that budgets other than `unlimited` are possible."""

    def __init__(
        self, tokenizer: "PreTrainedTokenizerFast", format: ChatFormat, more_stop_ids: Iterable[int] = ()
    ) -> None:
        """`more_stop_ids` also end a reply: a checkpoint may name several end tokens."""
        self._format = format
        self.template = format.template
        self.has_tools, self.has_thinking = format.has_tools, format.has_thinking
        self._text = TokenText(tokenizer, format.tokens)
        end_of_turn = self._text.control_id(format.end_of_turn.text)
        assert end_of_turn is not None, "the end of a turn is one of the format's tokens"
        eos, pad = self._text.control_id(tokenizer.eos_token), self._text.control_id(tokenizer.pad_token)
        ends = (end_of_turn, *(() if eos is None else (eos,)), *more_stop_ids)
        self.stop_ids = tuple(dict.fromkeys(ends))
        self.pad_id = end_of_turn if pad is None else pad

    def begin(self, messages: Sequence[Message], tools: Sequence[ToolSpec], budget: Budget) -> Dialogue:
        """A dialogue whose prompt ends where the policy writes its first reply.

        Texts, roles and JSON Schemas may be anything. Raises `ChatError` for what the format cannot express at all:
        tools without tool calls, messages in an order that a checkpoint's own template refuses, a tool that JSON
        cannot describe.
        """
        if tools and not self.has_tools:
            raise ChatError(
                f"this chat format has no tool calls ({', '.join(tool.name for tool in tools)} cannot be offered)"
            )
        return Dialogue(self._format, self._text, self.stop_ids, messages, tools, budget)

    def num_prompt_tokens(self, messages: Sequence[Message]) -> int:
        """Of a prompt without tools and thinking. Raises `ChatError` like `begin`."""
        return len(self.begin(messages, (), "off").prompt_ids)

    def continued(self, messages: Sequence[Message], tools: Sequence[ToolSpec], budget: Budget) -> Dialogue:
        """A dialogue whose prompt holds earlier replies, and ends where the policy writes the next one.

        Raises `ChatError` like `begin`, and unless assistant messages and others alternate and the last message is not
        the assistant's.
        """
        turns = _turns(messages)
        if len(turns) % 2 == 0:
            raise ChatError("the last message must not be the assistant's: its reply is what is asked for")
        dialogue = self.begin(turns[0], tools, budget)
        for said, following in zip(turns[1::2], turns[2::2], strict=True):
            dialogue.take(dialogue.reply_ids(Reply(said[0].content, said[0].reasoning, said[0].tool_calls)))
            dialogue.say(following)
        return dialogue

    def reply_stream(self, tools: Sequence[ToolSpec], budget: Budget) -> ReplyStream:
        """Reads a reply of such a dialogue while it is being sampled."""
        return ReplyStream(self._format, self._text, self.stop_ids, tools, budget)

    def conversation(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSpec],
        budget: Budget,
        enforcement: BudgetConfig | None = None,
        room: int = 0,
        untrained: Collection[int] = (),
        trains_forced: bool = False,
    ) -> tuple[Ids, tuple[bool, ...]]:
        """Ids of a whole conversation and, for each, whether the policy would have sampled it and is to be trained.

        All replies are trained but those at the places `untrained` of `messages`. Replies before the first trained one
        belong to the first prompt, as in a task whose opening has replies.

        With `enforcement`, reasoning that is longer than the budget is cut as the engine would cut it in replies of at
        most `room` tokens; what the engine would force is trained only with `trains_forced`. Raises `ChatError` unless
        assistant messages and others alternate and the last message is the assistant's, and for a reply that the format
        cannot express.
        """
        turns = _turns(messages)
        if len(turns) % 2:
            raise ChatError("a conversation must end with the assistant's message")
        replies = [index for index, message in enumerate(messages) if message.role == "assistant"]
        place = next((index for index in replies if index not in untrained), replies[-1])
        dialogue = self.begin(messages[:place], tools, budget)
        limit = dialogue.thinking_limit(enforcement, room) if enforcement else None
        loss_mask = [False] * len(dialogue.prompt_ids)
        for turn in turns[2 * replies.index(place) + 1 :]:
            if turn[0].role == "assistant":
                (said,) = turn
                new = dialogue.reply_ids(Reply(said.content, said.reasoning, said.tool_calls))
                new = limit.cut(new) if limit else new
                forced = limit.forced_mask(new) if limit else (False,) * len(new)
                forced = (False,) * len(new) if trains_forced else forced
                loss_mask += [place not in untrained and not by_force for by_force in forced]
                dialogue.take(new)
            else:
                loss_mask += [False] * len(dialogue.say(turn))
            place += len(turn)
        return dialogue.prompt_ids, tuple(loss_mask)

    def num_reasoning_tokens(self, reply: Reply) -> int:
        """Number of tokens of the reply's reasoning, without the tokens that end it."""
        return len(self._text.encode((reply.reasoning + "\n",)))

    @property
    def num_tokens(self) -> int:
        """Size of the tokenizer's vocabulary, control tokens included."""
        return self._text.num_tokens

    def text(self, ids: Sequence[int]) -> str:
        """Ids as readable text, control tokens included; for people and logs only."""
        return plain_text(self._text.decode(ids))

    def token_texts(self) -> list[str]:
        """The text of every token by its id, for people only: a token may be a part of a character."""
        return [self.text((token,)) for token in range(self.num_tokens)]


def _turns(messages: Sequence[Message]) -> list[tuple[Message, ...]]:
    """The messages taken apart: what is said to the policy, its reply, and so on. Raises `ChatError`."""
    if not messages or messages[0].role == "assistant":
        raise ChatError("a conversation must begin with a user's or system message, not the assistant's")
    turns = [tuple(group) for _, group in groupby(messages, lambda message: message.role == "assistant")]
    if any(len(said) > 1 for said in turns[1::2]):
        raise ChatError("two assistant messages follow each other")
    return turns


def load_chat(policy_folder: Path, format: str) -> Chat:
    """Load the checkpoint's tokenizer for a format of `CHAT_FORMATS`, or with `auto` for the first of them that fits.

    Raises `ChatError` if the folder has no fast tokenizer, or if the tokenizer does not fit the format; the error names
    the formats that do fit.
    """
    if format not in CHAT_NAMES:
        raise ChatError(f"there is no chat format {format!r}; there are {', '.join(CHAT_NAMES)}")
    tokenizer = load_tokenizer(policy_folder)
    chats, errors = _chats(tokenizer, _end_ids(policy_folder))
    if format == AUTO and chats:
        return next(iter(chats.values()))
    if format in chats:
        return chats[format]
    if format == AUTO:
        told = "; ".join(f"{name}: {error}" for name, error in errors.items())
        raise ChatError(f"{policy_folder}: no chat format fits ({told}). {_offer({})}")
    raise ChatError(f"{policy_folder}: chat: {format} does not fit: {errors[format]}. {_offer(chats)}")


def fitting_chats(policy_folder: Path) -> dict[str, Chat]:
    """The chats that fit the checkpoint's tokenizer, by format. Raises `ChatError` if there is no tokenizer."""
    return _chats(load_tokenizer(policy_folder), ())[0]


def _end_ids(policy_folder: Path) -> list[int]:
    """The end tokens that the checkpoint's generation defaults name; Llama 3 has three, of which its template uses one.

    Raises `ChatError` if the file is damaged.
    """
    path = policy_folder / "generation_config.json"
    if not path.is_file():
        return []
    try:
        named = json.loads(path.read_bytes()).get("eos_token_id")
    except (ValueError, AttributeError) as error:
        raise ChatError(f"{path} is damaged: {error}") from None
    ids = named if isinstance(named, list) else [named]
    return [id for id in ids if isinstance(id, int)]


def load_tokenizer(policy_folder: Path) -> "PreTrainedTokenizerFast":
    """Raises `ChatError` if the folder has no fast tokenizer."""
    from transformers import AutoTokenizer  # takes seconds to import

    if policy_folder.is_dir() and not list(policy_folder.glob("tokenizer*")):
        raise ChatError(
            f"{policy_folder}: cannot load the tokenizer: there is no tokenizer.json, copy it into the folder"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(policy_folder), local_files_only=True)
    except Exception as error:  # tokenizers raises bare exceptions for a file that it cannot read
        raise ChatError(f"{policy_folder}: cannot load the tokenizer: {error}") from error
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise ChatError(f"{policy_folder}: the tokenizer has no tokenizer.json (only fast tokenizers can be used)")
    return tokenizer


def _chats(
    tokenizer: "PreTrainedTokenizerFast", end_ids: Sequence[int]
) -> tuple[dict[str, Chat], dict[str, ChatError]]:
    """The chats of the formats that fit, and why the others do not."""
    chats: dict[str, Chat] = {}
    errors: dict[str, ChatError] = {}
    for name, kind in CHAT_FORMATS.items():
        try:
            chats[name] = Chat(tokenizer, kind.for_tokenizer(tokenizer), end_ids)
        except ChatError as error:
            errors[name] = error
    return chats, errors


def _offer(fitting: Mapping[str, Chat]) -> str:
    """A sentence about the other formats that fit the tokenizer."""
    if not fitting:
        return "No other chat format fits this checkpoint either: take another checkpoint, or build one (policy.build)"
    offers = []
    for name, chat in fitting.items():
        lacks = [word for word, has in (("tools", chat.has_tools), ("thinking budgets", chat.has_thinking)) if not has]
        offers.append(f"policy.chat: {name}" + (f" (without {' and '.join(lacks)})" if lacks else ""))
    return f"This checkpoint can be used with {' or '.join(offers)}"
