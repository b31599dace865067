"""What does the stage train? Rows as text, with the tokens marked that enter the loss."""

from collections.abc import Iterator, Sequence
from itertools import groupby

import typer

from rl.chat.chat import Chat, load_chat
from rl.chat.formats import new_format
from rl.config.experiment import ExperimentConfig
from rl.policies import train_tokenizer
from sft.data import IGNORED_LABEL, Row, row_budget, token_row, tokenizer_texts, training_conversations
from sft.plain_thinking import plain_thinking
from sft.rows import Conversation

LEFT, RIGHT = "⟦", "⟧"
"""Around trained tokens where there is no colour."""


def shown_rows(config: ExperimentConfig, num: int, *, in_colour: bool) -> Iterator[str]:
    """The first `num` rows of each source, as the stage would train them, each after a line with its place and tokens,
    and what was varied. Before them a warning, if think tags would be trained as plain text.

    Trained tokens are bold and green, or between `LEFT` and `RIGHT`. A policy that is to be built needs only its
    tokenizer, which is trained as the stage would train it. Raises `sft.rows.SftDataError`, `envs.gold.GoldError` and
    `rl.chat.format.ChatError`.
    """
    assert config.sft is not None
    conversations = training_conversations(config)
    chat = _chat(config, conversations)
    if warning := plain_thinking(conversations, chat, config.policy.path):
        yield f"{warning}\n"
    for part, source in enumerate(config.sft.sources):
        own = [conversation for conversation in conversations if conversation.part == part]
        if len(config.sft.sources) > 1:
            amounts = {"weight": source.weight, "epochs": source.epochs}
            told = ", ".join(f"{name} {value:g}" for name, value in amounts.items() if value is not None)
            yield f"=== {source.name}: {len(own):,} conversations, {told}\n"
        for conversation in own[:num]:
            row = token_row(conversation, chat, config)
            yield f"--- {_told(conversation, row, chat, config)}\n{marked(row, chat, in_colour=in_colour)}\n"


def _told(conversation: Conversation, row: Row, chat: Chat, config: ExperimentConfig) -> str:
    """What a row is, how it was varied, and whether the stage skips it."""
    assert config.sft is not None
    num_trained = sum(label != IGNORED_LABEL for label in row.labels)
    told = f"{conversation.source}: {len(row.input_ids):,} tokens, {num_trained:,} of them trained"
    told += f", thinking budget {row_budget(conversation, chat)}"
    if conversation.cut_at is not None:
        told += f", at which the reasoning is cut, its end {config.sft.truncated_end}"
    told += f", effort {conversation.effort}" if conversation.effort is not None else ""
    if len(row.input_ids) > config.policy.max_tokens:
        told += f"; skipped, because policy.max_tokens is {config.policy.max_tokens}"
    if config.sft.repetition_max is not None and conversation.repetition > config.sft.repetition_max:
        told += f"; left out, because {conversation.repetition:.0%} of its reasoning's runs of words are repeated"
    return told


def _chat(config: ExperimentConfig, conversations: Sequence[Conversation]) -> Chat:
    if config.policy.path is not None:
        return load_chat(config.policy.path, config.policy.chat)
    assert config.policy.build is not None
    format = new_format(config.policy.chat)
    return Chat(train_tokenizer(tokenizer_texts(conversations, format), config.policy.build.vocab_size, format), format)


def marked(row: Row, chat: Chat, *, in_colour: bool) -> str:
    """The row's text with marks around the trained tokens.

    Each run of trained tokens, or of others, is decoded at once: a token may be a part of a character.
    """
    text = ""
    pairs = zip(row.input_ids, row.labels, strict=True)
    for is_trained, run in groupby(pairs, lambda pair: pair[1] != IGNORED_LABEL):
        part = chat.text([id for id, _ in run]).replace("\x1b", "\\x1b")  # data must not command the terminal
        if not is_trained:
            text += part
        elif in_colour:
            text += typer.style(part, bold=True, fg=typer.colors.GREEN)
        else:
            text += f"{LEFT}{part}{RIGHT}"
    return text
