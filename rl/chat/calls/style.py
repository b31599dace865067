"""What must a style of tool calls implement: how is a call written into a reply, and read from it?"""

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

from envs.messages import ToolCall, ToolSpec
from rl.chat.format import Pieces, Token, plain_text

CALL, CALL_END = Token("<tool_call>"), Token("</tool_call>")
MAX_CALLS = 128
"""In one reply; more are malformed. Each call is a step of environment code, so a policy must not choose how many."""


Kind = Literal["unclosed", "misplaced", "too_many", "form", "arguments"]
"""What is wrong with a call: it is never closed; it, or text, is where none may be; there are too many in one reply; it
does not have the style's form; its arguments cannot be read."""


class MalformedCall(ValueError):
    """A call that cannot be read. The message is for the policy, the kind for metrics."""

    def __init__(self, message: str, kind: Kind) -> None:
        super().__init__(message)
        self.kind: Kind = kind


class CallStyle(Protocol):
    """A style is a file in `rl/chat/calls/` and an entry of `CALL_STYLES` there."""

    tokens: tuple[Token, ...]
    """Control tokens that the tokenizer must have."""

    def write(self, call: ToolCall) -> Pieces:
        """The call as a policy writes it. Raises `ChatError` for a call that `read` would not give back."""
        ...

    def read(self, pieces: Pieces, tools: Sequence[ToolSpec]) -> tuple[str, tuple[ToolCall, ...]]:
        """The text before the calls, and the calls; all of the text if there are none. Time is linear in the pieces.

        Raises `MalformedCall`.
        """
        ...


def read_bracketed(pieces: Pieces, read_one: Callable[[str], ToolCall]) -> tuple[str, tuple[ToolCall, ...]]:
    """Calls between the tokens `<tool_call>` and `</tool_call>`, each read by `read_one`. Raises `MalformedCall`."""
    first = next((i for i, piece in enumerate(pieces) if piece in (CALL, CALL_END)), len(pieces))
    calls: list[ToolCall] = []
    call: list[Token | str] | None = None  # the pieces of the call that is open
    for piece in pieces[first:]:
        if call is None and piece == CALL:
            call = []
        elif call is None and piece == CALL_END:
            raise MalformedCall("</tool_call> closes no tool call", "misplaced")
        elif call is None and plain_text([piece]).strip():
            raise MalformedCall("text after a tool call", "misplaced")
        elif call is not None and piece == CALL_END:
            if len(calls) == MAX_CALLS:
                raise MalformedCall(f"more than {MAX_CALLS} tool calls in one reply", "too_many")
            if CALL in call:
                raise MalformedCall("tool call inside a tool call", "misplaced")
            calls.append(read_one(plain_text(call)))
            call = None
        elif call is not None:
            call.append(piece)
    if call is not None:
        raise MalformedCall("tool call is not closed with </tool_call>", "unclosed")
    return plain_text(pieces[:first]), tuple(calls)
