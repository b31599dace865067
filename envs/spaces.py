"""Gymnasium spaces over text: the messages of an environment and the replies of a policy.

They replace gymnasium's own `Text`, which rejects blanks and takes seconds to build over all of Unicode.
"""

from typing import Any

from gymnasium import Space

from envs.messages import Message, Reply, ToolCall

ALPHABET = "abcdefghijklmnopqrstuvwxyz 0123456789 <>/=\n"


class Conversation(Space[tuple[Message, ...]]):
    """Any tuple of messages."""

    def __init__(self) -> None:
        super().__init__(shape=None, dtype=None)

    @property
    def is_np_flattenable(self) -> bool:
        return False

    def sample(self, mask: Any = None, probability: Any = None) -> tuple[Message, ...]:
        return (Message("user", random_text(self)),)

    def contains(self, x: Any) -> bool:
        return isinstance(x, tuple) and all(isinstance(message, Message) for message in x)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Conversation)


class Replies(Space[Reply]):
    """Any reply, with any text, reasoning and tool calls."""

    def __init__(self) -> None:
        super().__init__(shape=None, dtype=None)

    @property
    def is_np_flattenable(self) -> bool:
        return False

    def sample(self, mask: Any = None, probability: Any = None) -> Reply:
        calls = (ToolCall(random_text(self), {}),) if self.np_random.random() < 0.3 else ()
        return Reply(random_text(self), random_text(self), calls)

    def contains(self, x: Any) -> bool:
        return isinstance(x, Reply) and isinstance(x.text, str) and isinstance(x.reasoning, str)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Replies)


def random_text(space: Space) -> str:
    """Up to 40 random characters from the space's generator."""
    length = int(space.np_random.integers(0, 40))
    return "".join(space.np_random.choice(list(ALPHABET), size=length)) if length else ""
