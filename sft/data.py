"""Which data does the supervised stage train on: gold conversations or `sft.data`, as rows of tokens?"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, zip_longest
from typing import Protocol

import numpy as np

from envs.gold import gold_episode
from envs.messages import Message, Reply
from envs.registry import make
from envs.sandbox import require_level
from envs.text_env import TextEnv
from rl.chat.chat import Chat, load_chat
from rl.chat.format import ChatError, ChatFormat, conversation_text
from rl.chat.formats import new_format
from rl.config.experiment import ExperimentConfig
from rl.config.policy import PolicyConfig
from rl.config.supervised import GOLD_NO_THINKING_SHARE
from rl.data_types import EFFORTS, Budget
from rl.tasks.seeds import draw_budget
from sft.mixture import read_source
from sft.rows import Conversation, SftDataError, identity_of, to_last_reply
from sft.sources import Keys
from sft.variations import repetition, turns_apart, varied, with_effort

IGNORED_LABEL = -100  # ignored by torch's cross-entropy
GIVING_UP = "I do not know."
MAX_SEED = 2**31
CONVERSATIONS_FOR_TOKENIZER = 4000


@dataclass(frozen=True, slots=True)
class Row:
    """Token ids of one conversation; `labels` equal them where the policy would have sampled them, else -100."""

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    part: int = 0
    """Place of its source in `sft.data`."""
    identity: str = field(default="", compare=False)
    """Of its conversation, before it was varied."""

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def heldout_keys(self) -> tuple[Hashable, ...]:
        """Rows that have a key in common are held out together, or not at all: equal rows, and all rows of equal
        conversations.
        """
        return (self.identity, self.input_ids) if self.identity else (self.input_ids,)


class AnyRow(Protocol):
    """A row of tokens, or a pair of them."""

    def __len__(self) -> int: ...
    @property
    def part(self) -> int: ...
    @property
    def heldout_keys(self) -> tuple[Hashable, ...]: ...


UNTRAINED = Row((0, 0), (IGNORED_LABEL, IGNORED_LABEL))
"""A row that fills up a batch and changes nothing."""


def training_conversations(config: ExperimentConfig) -> list[Conversation]:
    """The conversations of all sources, varied as `sft` says, those of a source together and in its order.

    Raises `SftDataError`, `envs.gold.GoldError`, `rl.chat.format.ChatError`, and for rollouts what
    `envs.rollout_file.read_rollouts` raises.
    """
    sft = config.sft
    assert sft is not None
    has_thinking = _has_thinking(config.policy)
    if sft.keys_of_thinking and not has_thinking:
        key = ".".join(sft.keys_of_thinking[0])
        raise SftDataError(f"{key} asks for reasoning, but the policy's chat format has no think block; remove it")
    if sft.has_gold:
        require_level(config.rollout.sandbox_level)  # gold replies may run code
    conversations: list[Conversation] = []
    for part, source in enumerate(sft.sources):
        keys = Keys.of("sft", part if isinstance(sft.data, tuple) else None)
        read = gold_conversations(config) if source.gold else read_source(source, keys, has_thinking=has_thinking)
        if sft.split_turns:
            read = [turn for conversation in read for turn in turns_apart(conversation)]
        if sft.repetition_max is not None:
            read = [replace(conversation, repetition=repetition(conversation)) for conversation in read]
        read = [with_effort(conversation, source.effort) for conversation in read]
        if not source.gold:  # they are varied where they are made
            share = sft.no_thinking_share or 0.0
            read = list(varied(read, share, sft.truncated_share, (config.seed, 0x5F8, part)))
        conversations += [replace(conversation, part=part) for conversation in read]
    return conversations


def _has_thinking(policy: PolicyConfig) -> bool:
    """Whether the policy's chat format has a think block. Raises `ChatError`."""
    return (load_chat(policy.path, policy.chat) if policy.path else new_format(policy.chat)).has_thinking


def gold_conversations(config: ExperimentConfig, make_env: Callable[[str], TextEnv] = make) -> list[Conversation]:
    """`sft.num_conversations` gold conversations of the training split, environments drawn by their weights.

    They are a function of the configuration alone. Each has a budget drawn from its environment's. Of those that could
    think and have no effort, `sft.no_thinking_share` do not, and `sft.truncated_share` are cut; in
    `sft.giving_up_share` the assistant gives up.
    """
    sft = config.sft
    assert sft is not None
    num = sft.num_conversations
    rng = np.random.default_rng([config.seed, 0x5F7])  # separate from the task stream of the RL stage
    env_ids = sorted(config.environments)
    weights = np.array([config.environments[env_id].weight for env_id in env_ids])
    drawn = rng.choice(len(env_ids), size=num, p=weights / weights.sum()).tolist()
    seeds = rng.integers(MAX_SEED, size=num).tolist()
    silent_share = GOLD_NO_THINKING_SHARE if sft.no_thinking_share is None else sft.no_thinking_share
    silent = (rng.random(num) < silent_share).tolist()
    helpless = (rng.random(num) < sft.giving_up_share).tolist()
    cut = (rng.random(num) < sft.truncated_share).tolist()
    places = rng.random(num).tolist()
    envs = {env_id: make_env(env_id) for env_id in env_ids}
    conversations = []
    for number, index in enumerate(drawn):
        env_id, seed = env_ids[index], seeds[number]
        section, env = config.environments[env_id], envs[env_ids[index]]
        messages, num_opening = gold_episode(env, seed, {**section.options, "split": "train"})
        identity = identity_of(to_last_reply(messages), env.tools)
        read = frozenset(place for place in range(num_opening) if messages[place].role == "assistant")
        if helpless[number]:
            messages = (*messages[:num_opening], Message("assistant", GIVING_UP))
        budget = draw_budget(section.budget, seed)
        has_effort = budget in EFFORTS  # such conversations stay as they are, like rows that state one
        if (budget := "off" if silent[number] and not has_effort else budget) == "off":
            messages = tuple(replace(message, reasoning="") for message in messages)
        is_cut = cut[number] and not has_effort
        cut_at = places[number] if is_cut and any(one.reasoning for one in messages[num_opening:]) else None
        source = f"{env_id}, seed {seed}"
        messages = to_last_reply(messages)
        conversations.append(Conversation(messages, env.tools, budget, source, cut_at, read, identity=identity))
    for env in envs.values():
        env.close()
    return conversations


def tokenizer_texts(conversations: Sequence[Conversation], format: ChatFormat) -> list[str]:
    """The texts on which the tokenizer of a policy that is built is trained."""
    by_source = [list(group) for _, group in groupby(conversations, lambda conversation: conversation.part)]
    in_turn = [c for one_of_each in zip_longest(*by_source) for c in one_of_each if c is not None]
    some = in_turn[:CONVERSATIONS_FOR_TOKENIZER]
    return [conversation_text(format, c.messages, c.tools, c.budget) for c in some]


def token_rows(conversations: Iterable[Conversation], chat: Chat, config: ExperimentConfig) -> list[Row]:
    """Rows of at most `policy.max_tokens` tokens; longer conversations are left out.

    Raises `SftDataError` for a conversation that the chat format cannot express, and when none is short enough.
    """
    all_rows = [token_row(conversation, chat, config) for conversation in conversations]
    rows = [row for row in all_rows if len(row) <= config.policy.max_tokens]
    if not rows:
        raise SftDataError(
            f"all {len(all_rows)} conversations are longer than policy.max_tokens ({config.policy.max_tokens});"
            " raise it"
        )
    return rows


def token_row(conversation: Conversation, chat: Chat, config: ExperimentConfig) -> Row:
    """A conversation of any length as tokens.

    Reasoning that is longer than its budget ends as the engine would end it; what the engine would force is trained
    only if it is cut because of `sft.truncated_share`, with `truncated_end: trained`. Raises `SftDataError` for a
    conversation that the chat format cannot express.
    """
    is_cut = conversation.cut_at is not None
    try:
        ids, mask = chat.conversation(
            conversation.messages,
            conversation.tools,
            row_budget(conversation, chat),
            enforcement=config.budget,
            room=config.policy.max_tokens if is_cut else config.rollout.max_reply_tokens,
            untrained=conversation.untrained,
            trains_forced=is_cut and config.sft is not None and config.sft.truncated_end == "trained",
        )
    except ChatError as error:
        raise SftDataError(f"{conversation.source}: {error}") from None
    labels = tuple(id if mine else IGNORED_LABEL for id, mine in zip(ids, mask, strict=True))
    return Row(ids, labels, conversation.part, conversation.identity)


def row_budget(conversation: Conversation, chat: Chat) -> Budget:
    """The conversation's own budget; if it is to be cut, a budget that its longest trained reasoning exceeds."""
    if conversation.cut_at is None:
        return conversation.budget
    replies = conversation.trained.values()
    longest = max(chat.num_reasoning_tokens(Reply(reply.content, reply.reasoning)) for reply in replies)
    return 1 + int(conversation.cut_at * (longest - 1))
