"""Which forms may a row of training data have, and how does each become a conversation?

The forms, recognised by their keys, are those of `FORMS`; sft/README.md describes them. Beside them a row may have
`tools` and `effort`. A row without any reasoning is trained with budget `off`. What follows the last reply is left out.
Half of a surrogate pair is replaced, as it is in rollouts.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from envs.messages import Message, ToolSpec
from rl.config.budgets import effort_text
from rl.config.errors import ConfigError
from rl.data_types import Budget
from sft.efforts import asked_effort, stated_effort
from sft.messages import BadRow, MessageReader, from_json, read_tools

FORMS: Mapping[tuple[str, ...], str] = {
    ("messages",): '{"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]}',
    ("prompt", "completion"): '{"prompt": "2 + 2?", "completion": "4"}',
    ("conversations",): '{"conversations": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]}',
}
"""By the keys that tell it: an example of each form."""


SAMPLED = frozenset({"env_id", "seed", "reward"})
"""Keys of the rows that `sft.from_rollouts` makes: their reasoning was sampled, and stays as it is."""


class SftDataError(ConfigError):
    """Conversations that cannot be trained on. Says which file and row, or which environment and seed."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages up to the last reply, with their tools, thinking budget and source."""

    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...]
    budget: Budget
    source: str
    cut_at: float | None = None
    """Where the reasoning is to be cut at a random budget: the place, as a share of its tokens."""
    untrained: frozenset[int] = frozenset()
    """Places of assistant messages that are only read: those of a prompt, and those of weight 0."""
    effort: str | None = None
    """The reasoning effort that the last user message states, or that all are to state."""
    has_effort_key: bool = False
    """Whether the row's key says so, and not only the text of that message."""
    part: int = 0
    """Place of its source in `sft.data`."""
    identity: str = ""
    """Equal for conversations that were equal before they were varied, and for the parts of one."""
    repetition: float = 0.0
    """How much its reasoning repeats itself (`sft.variations.repetition`), if the stage wants to know."""

    @property
    def trained(self) -> dict[int, Message]:
        """The trained replies, by their places in `messages`."""
        return {
            place: message
            for place, message in enumerate(self.messages)
            if message.role == "assistant" and place not in self.untrained
        }


def read_row(row: Any, source: str, *, has_thinking: bool) -> Conversation:
    """The conversation of a row in one of `FORMS`.

    `has_thinking` says whether the chat format has a think block. Raises `BadRow`, whose text names the key.
    """
    conversation = read_keys(row, _form(row), source, has_thinking=has_thinking)
    key = _read_effort(row, conversation.messages, has_thinking=has_thinking)
    return replace(conversation, effort=key or asked_effort(conversation.messages), has_effort_key=key is not None)


def read_keys(row: Mapping[str, Any], keys: tuple[str, ...], source: str, *, has_thinking: bool) -> Conversation:
    """The conversation that stands under these keys of a row, one after the other. Raises `BadRow`."""
    tools = read_tools(row.get("tools"))
    reader = MessageReader(tools, has_thinking=has_thinking, was_sampled=SAMPLED.issubset(row))
    messages: list[Message] = []
    untrained: set[int] = set()
    for place, given, is_prompt in _entries(row, keys):
        try:
            entry = _in_openai_words(given)
            messages.append(reader.read(entry))
            if messages[-1].role == "assistant" and (is_prompt or _has_no_weight(entry)):
                untrained.add(len(messages) - 1)
        except BadRow as error:
            raise BadRow(f"{place}: {error}") from None
    budget: Budget = "unlimited" if any(message.reasoning for message in messages) else "off"
    conversation = Conversation(tuple(messages), tools, budget, source, untrained=frozenset(untrained))
    if not conversation.trained:
        raise BadRow(f"{' and '.join(keys)}: no assistant message to train on")
    kept = to_last_reply(messages)
    return replace(conversation, messages=kept, identity=identity_of(kept, tools))


def identity_of(messages: Iterable[Message], tools: Iterable[ToolSpec]) -> str:
    """A digest of a conversation, not of what is trained of it."""
    said = [
        [one.role, one.content, one.reasoning, one.name, [[call.name, dict(call.arguments)] for call in one.tool_calls]]
        for one in messages
    ]
    shown = [[tool.name, tool.description, dict(tool.parameters)] for tool in tools]
    text = json.dumps([said, shown], sort_keys=True, default=repr)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _read_effort(row: Mapping[str, Any], messages: Iterable[Message], *, has_thinking: bool) -> str | None:
    """The effort that the row's key states."""
    given = row.get("effort")
    if given is None:
        return None
    if not isinstance(given, str) or stated_effort(effort_text(given)) != given:
        raise BadRow(f"effort must be one word, such as efficient, got {given!r:.100}")
    if not has_thinking:
        raise BadRow(f"effort ({given}) asks for reasoning, but the policy's chat format has no think block")
    if not any(message.reasoning for message in messages):
        raise BadRow(f"effort ({given}) asks for reasoning, but no message of the row has any; remove one of them")
    return given


def to_last_reply(messages: Iterable[Message]) -> tuple[Message, ...]:
    """The messages up to the last reply; later messages are not trained."""
    messages = tuple(messages)
    last = max(index for index, message in enumerate(messages) if message.role == "assistant")
    return messages[: last + 1]


def _form(row: Any) -> tuple[str, ...]:
    """The keys of the row's form."""
    if isinstance(row, Mapping) and isinstance(row.get("task"), Mapping) and "messages" in row:
        raise BadRow(
            "the row is a saved rollout, which may be a bad one: name its file as rollouts: in a list of sft.data,"
            " or write its good ones as rows with python -m sft from-rollouts"
        )
    given = {key for key, value in row.items() if value is not None} if isinstance(row, Mapping) else set()
    found = [keys for keys in FORMS if given.issuperset(keys)]
    if len(found) == 1:
        return found[0]
    if found:
        forms = ", ".join(" with ".join(keys) for keys in found)
        raise BadRow(f"the row has several forms ({forms}); keep one, or set the others to null")
    has = f"an object with {', '.join(map(str, row)) or 'no key'}" if isinstance(row, Mapping) else type(row).__name__
    raise BadRow("\n  ".join([f"a row must have one of these forms, got {has:.300}:", *FORMS.values()]))


def _entries(row: Mapping[str, Any], keys: tuple[str, ...]) -> Iterator[tuple[str, Any, bool]]:
    """Place and value of each message, and whether it belongs to a prompt, of which no reply is trained."""
    if keys == ("conversations",) and row.get("system") is not None:
        yield "system", {"role": "system", "content": row["system"]}, False
    for key in keys:
        value = row[key]
        if isinstance(value, str) and len(keys) > 1:
            yield key, {"role": "user" if key == "prompt" else "assistant", "content": value}, False
        elif isinstance(value, list) and value:
            yield from ((f"{key}[{index}]", entry, key == "prompt") for index, entry in enumerate(value))
        else:
            text = "text, or " if len(keys) > 1 else ""
            found = "an empty list" if isinstance(value, list) else type(value).__name__
            raise BadRow(f"{key} must be {text}a list of messages, got {found}")


def _in_openai_words(entry: Any) -> Any:
    """A message of ShareGPT in OpenAI's words; others as they are."""
    if not isinstance(entry, Mapping) or entry.get("from") is None:
        return entry
    role, value, content = entry["from"], entry.get("value"), entry.get("content")
    if value is not None and content is not None and value != content:
        raise BadRow("a message's value and content are different; keep the one to train")
    value = content if value is None else value
    rest = {key: item for key, item in entry.items() if key not in ("from", "value", "content")}
    if role != "function_call":
        return {**rest, "role": role, "content": value}
    calls = from_json(value, "a function call") if isinstance(value, str) else value
    return {**rest, "role": "assistant", "tool_calls": calls if isinstance(calls, list) else [calls]}


def _has_no_weight(message: Mapping[str, Any]) -> bool:
    """Whether the message is not to be trained: OpenAI's key `weight`, 0 or 1."""
    weight = message.get("weight")
    if weight not in (None, 0, 1):
        raise BadRow(f"a message's weight must be 0 (only read) or 1 (trained), got {weight!r:.100}")
    return weight == 0
