"""How does a row of a data set become a preference pair: a chosen and a rejected conversation with one prompt?

A row has `prompt`, `chosen` and `rejected`, or only the last two as whole conversations that begin alike. They are read
and written as token ids by the code of the supervised stage, so that a prompt has the ids that rollouts would have.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile, zip_longest
from typing import Any

from rl.chat.chat import Chat
from rl.config.experiment import ExperimentConfig
from rl.config.preferences import PairsConfig, PairStage
from rl.data_types import Budget
from sft.data import Row, token_row
from sft.messages import BadRow
from sft.rows import Conversation, SftDataError, read_keys
from sft.sources import Keys, read_all

EXAMPLE = '{"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}'
SIDES = ("chosen", "rejected")


@dataclass(frozen=True, slots=True)
class Pair:
    """Two conversations that begin with the same prompt and budget; only what follows it is trained."""

    chosen: Conversation
    rejected: Conversation


@dataclass(frozen=True, slots=True)
class PairRow:
    """A pair as tokens."""

    chosen: Row
    rejected: Row
    heldout_keys: tuple[tuple[int, ...]]
    """The ids of the tools and of the messages before the first reply: all pairs that begin so are held out together,
    or none."""

    def __len__(self) -> int:
        """Tokens of a forward pass over both, padding included."""
        return 2 * max(len(self.chosen), len(self.rejected))

    @property
    def part(self) -> int:
        """Place of its source, of which there is one."""
        return self.chosen.part


def read_pairs(section: PairsConfig, name: PairStage, *, has_thinking: bool) -> list[Pair]:
    """The pairs of `section.data`; `has_thinking` says whether the chat format has a think block.

    Raises `SftDataError` that counts the bad rows and tells the first.
    """
    (source,) = section.sources

    def read(row: Any, place: str) -> Pair:
        return read_pair(row, place, has_thinking=has_thinking)

    return read_all(source, Keys.of(name), read, "pairs", EXAMPLE)


def read_pair(row: Any, source: str, *, has_thinking: bool) -> Pair:
    """The pair of a row. Raises `BadRow`, whose text names the key."""
    if missing := [side for side in SIDES if not isinstance(row, Mapping) or row.get(side) is None]:
        raise BadRow(f"the row has no {' and no '.join(missing)}; it must be like {EXAMPLE}, or have lists of messages")
    prompt = ("prompt",) if row.get("prompt") is not None else ()
    chosen, rejected = (read_keys(row, (*prompt, side), source, has_thinking=has_thinking) for side in SIDES)
    if chosen.messages == rejected.messages:
        raise BadRow("chosen and rejected are equal, so there is nothing to prefer; remove the row")
    if prompt:
        num = len(row["prompt"]) if isinstance(row["prompt"], list) else 1
    else:
        together = zip_longest(chosen.messages, rejected.messages)
        num = next(place for place, (one, other) in enumerate(together) if one != other)
    # A reply without reasoning beside one with some was written with thinking on: the prompt must be one.
    budget: Budget = "unlimited" if "unlimited" in (chosen.budget, rejected.budget) else "off"
    return Pair(*(_after(num, one, side, budget) for side, one in zip(SIDES, (chosen, rejected), strict=True)))


def _after(num: int, conversation: Conversation, side: str, budget: Budget) -> Conversation:
    """The conversation, of which nothing is trained before its message number `num`, the first after the prompt.

    Raises `BadRow` if that is not the assistant's.
    """
    following = conversation.messages[num : num + 1]
    if not following or following[0].role != "assistant":
        found = f"a message of role {following[0].role}" if following else "nothing"
        raise BadRow(
            f"{side}: an assistant's message must follow the prompt, which chosen and rejected have in common, but"
            f" {found} does; give the prompt once, as prompt, and in chosen and rejected only what follows it"
        )
    before = {place for place in range(num) if conversation.messages[place].role == "assistant"}
    trained = replace(conversation, untrained=conversation.untrained | before, budget=budget)
    if not trained.trained:
        raise BadRow(f"{side}: no assistant message to train on after the prompt")
    return trained


def token_pairs(pairs: Iterable[Pair], chat: Chat, config: ExperimentConfig) -> tuple[list[PairRow], Mapping[str, int]]:
    """Pairs as tokens, and how many were skipped, by the reason.

    Raises `SftDataError` for a conversation that the chat format cannot express, and when no pair is left.
    """
    longer, equal = "longer than policy.max_tokens", "equal in this chat format"
    rows: list[PairRow] = []
    skipped = {longer: 0, equal: 0}
    for pair in pairs:
        chosen, rejected = (token_row(one, chat, config) for one in (pair.chosen, pair.rejected))
        row = PairRow(chosen, rejected, (_heldout_key(pair.chosen),))
        if max(len(row.chosen), len(row.rejected)) > config.policy.max_tokens:
            skipped[longer] += 1
        elif row.chosen == row.rejected:  # such as two that differ in reasoning, which the format does not write
            skipped[equal] += 1
        else:
            rows.append(row)
    if not rows:
        told = "; ".join(f"{num:,} are {reason}" for reason, num in skipped.items() if num)
        raise SftDataError(f"no pair can be trained: {told} ({config.policy.max_tokens} tokens)")
    return rows, skipped


def _heldout_key(conversation: Conversation) -> tuple[int, ...]:
    """A digest, which does not depend on whether the replies think, or on how much of the conversation is trained."""
    opening = takewhile(lambda message: message.role != "assistant", conversation.messages)
    tools = [[tool.name, tool.description, dict(tool.parameters)] for tool in conversation.tools]
    told = json.dumps([[[one.role, one.content, one.name] for one in opening], tools], sort_keys=True)
    return tuple(hashlib.sha256(told.encode()).digest())


def flat(rows: Sequence[PairRow]) -> list[Row]:
    """The conversations of the pairs, one after the other."""
    return [row for pair in rows for row in (pair.chosen, pair.rejected)]
