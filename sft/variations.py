"""How is a conversation varied before it is trained: stated effort, thinking off, cut reasoning, a row a user's turn?

Nemotron 3 Nano strips the reasoning of 10 % of its conversations and cuts that of 3 % at a random budget (arXiv
2512.20848, section 3.1); Super has 2 % of low effort (arXiv 2604.12374, section 3.1).
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from rl.config.budgets import effort_text
from sft.efforts import asked_effort, stated_effort
from sft.rows import Conversation, SftDataError

REPEATED_WORDS = 8
"""Of a run of words that counts as repeated."""


def with_effort(conversation: Conversation, effort: str | None) -> Conversation:
    """The conversation, with the effort of its row's key, or this one, stated where a thinking budget would be: at the
    end of the last user message before each trained reply. Only where there is reasoning without a budget, and not a
    second time. What a message states by itself is not written into others.
    """
    effort = conversation.effort if conversation.has_effort_key else effort
    if effort is None or conversation.budget != "unlimited" or conversation.cut_at is not None:
        return conversation
    messages, text, asked = list(conversation.messages), effort_text(effort), None
    for place, message in enumerate(conversation.messages):
        asked = place if message.role == "user" else asked
        if asked is None or place not in conversation.trained:
            continue
        content = messages[asked].content
        if stated_effort(content) is None:
            messages[asked] = replace(messages[asked], content=content + text)
        elif stated_effort(content) != effort:
            raise SftDataError(
                f"{conversation.source}: a user message ends with another effort than {effort!r}, which the row or its"
                f" source has as `effort`: {content[-60:]!r}; keep one of them"
            )
    return replace(conversation, messages=tuple(messages), effort=effort)


def varied(
    conversations: Sequence[Conversation], no_thinking_share: float, truncated_share: float, seed: Sequence[int]
) -> Iterator[Conversation]:
    """The conversations; of those whose trained replies have reasoning and state no effort, a share with thinking off,
    and of the rest a share that is to be cut. Whether one is varied does not depend on the ones after it.
    """
    draws = np.random.default_rng(seed).random((len(conversations), 3))
    for conversation, (silent, cut, place) in zip(conversations, draws.tolist(), strict=True):
        if conversation.effort is not None or not any(message.reasoning for message in conversation.trained.values()):
            yield conversation
        elif silent < no_thinking_share:
            messages = tuple(replace(message, reasoning="") for message in conversation.messages)
            yield replace(conversation, messages=messages, budget="off")
        else:
            yield replace(conversation, cut_at=place if cut < truncated_share else None)


def turns_apart(conversation: Conversation) -> list[Conversation]:
    """A conversation with reasoning as one for each message of a user that trained replies follow.

    Earlier replies are only read, and without their reasoning, as a template that takes it away would show them.
    """
    if conversation.budget == "off":
        return [conversation]
    messages = conversation.messages
    asked = [place for place, message in enumerate(messages) if message.role == "user"]
    begins = [0, *asked[1:]]
    if len(begins) == 1:
        return [conversation]
    found = []
    for number, (begin, end) in enumerate(pairwise([*begins, len(messages)]), 1):
        replies = [place for place in range(begin, end) if messages[place].role == "assistant"]
        trained = [messages[place] for place in replies if place in conversation.trained]
        if not trained:
            continue
        earlier = [replace(message, reasoning="") for message in messages[:begin]]
        read = {place for place in range(begin) if messages[place].role == "assistant"}
        own = messages[begin : replies[-1] + 1]
        found.append(
            replace(
                conversation,
                effort=conversation.effort if conversation.has_effort_key else asked_effort(own),
                messages=(*earlier, *own),
                untrained=conversation.untrained | read,
                budget=conversation.budget if any(message.reasoning for message in own) else "off",
                cut_at=conversation.cut_at if any(reply.reasoning for reply in trained) else None,
                source=f"{conversation.source}, user message {number}",
            )
        )
    return found


def repetition(conversation: Conversation) -> float:
    """Share of the runs of `REPEATED_WORDS` words in a trained reply's reasoning that have occurred before in it; the
    largest of all replies. Words are what white space separates.
    """
    return max((_repetition(message.reasoning) for message in conversation.trained.values()), default=0.0)


def _repetition(text: str) -> float:
    words = text.split()
    runs = list(zip(*(words[start:] for start in range(REPEATED_WORDS)), strict=False))
    return 1.0 - len(set(runs)) / len(runs) if runs else 0.0
