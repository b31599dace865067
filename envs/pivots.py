"""Which turns of an agent's conversations can be played alone? Rows of `tools/Pivot-v0`, and how they are made.

A row is a JSON object with `prompt` (the messages before the turn) and `expert` (the assistant's message) as chat
completions have them, `tools`, `key` and `split`. All turns of a conversation, and all conversations that begin with
the same messages, are in one split.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs.chat_completions import MALFORMED, read_messages, read_tools
from envs.errors import InputError, named, shown
from envs.json_lines import read_rows
from envs.messages import Message, Reply, ToolSpec
from envs.text_env import Split, in_split
from rewards.equivalence import NotComparableError, normal_call

THINK, THINK_END = "<think>", "</think>"
NUM_KEY_CHARACTERS = 16


class PivotError(InputError):
    """A conversation or a row that no turn can be played of. Says the file and the line."""


@dataclass(frozen=True, slots=True)
class PivotTurn:
    """A turn: the messages before it, the tools, and what the expert did."""

    prompt: tuple[Message, ...]
    tools: tuple[ToolSpec, ...]
    action: Reply
    key: str
    split: Split


def pivots_of(messages: Sequence[Message], tools: Sequence[ToolSpec], name: str) -> list[PivotTurn]:
    """The turns of a conversation, one a reply to a message of user or tool; other replies are left out.

    The split depends on the messages before the first reply alone: two conversations may begin alike and then differ.
    `name` distinguishes such conversations in the keys.
    """
    identity = _identity(messages)
    split: Split = "train" if in_split(identity, "train") else "heldout"
    return [
        PivotTurn(tuple(messages[:place]), tuple(tools), _action(message), f"{identity} {name} {place}", split)
        for place, message in enumerate(messages)
        if _is_turn(messages, place)
    ]


def _is_turn(messages: Sequence[Message], place: int) -> bool:
    return messages[place].role == "assistant" and place > 0 and messages[place - 1].role in ("user", "tool")


def _action(message: Message) -> Reply:
    return Reply(message.content, message.reasoning, message.tool_calls)


def make_rows(path: Path) -> list[dict[str, Any]]:
    """A row of each turn of conversations: JSON lines with `messages` and `tools` as chat completions have them.

    A reply of weight 0 is no turn, and neither is an empty one. Raises `PivotError`, `JsonLineError`.
    """
    rows = []
    for number, row in enumerate(read_rows(path, "messages"), start=1):
        where, given = f"{path}, line {number}", row["messages"]
        messages, tools = _read(given, row.get("tools"), where)
        for turn in pivots_of(messages, tools, str(number)):
            place = len(turn.prompt)
            has_weight = given[place].get("weight") != 0
            if has_weight and (turn.action.tool_calls or turn.action.text.strip()):
                _check(turn, f"{where}, messages[{place}]")
                told = {"prompt": given[:place], "expert": given[place], "tools": row.get("tools") or []}
                rows.append({**told, "key": turn.key, "split": turn.split})
    return rows


def read_pivots(path: Path) -> list[PivotTurn]:
    """The rows of a file. Raises `PivotError`, `JsonLineError`."""
    turns = []
    for number, row in enumerate(read_rows(path, "prompt", "expert", "tools", "key", "split"), start=1):
        place = f"{path}, line {number}"
        if not isinstance(row["prompt"], list) or row["split"] not in ("train", "heldout"):
            raise PivotError(f"{place}: prompt must be a list of messages, and split train or heldout; {HOW}")
        messages, tools = _read([*row["prompt"], row["expert"]], row["tools"], place)
        if not _is_turn(messages, len(messages) - 1):
            raise PivotError(f"{place}: expert must be an assistant's message that follows a user's or a tool's; {HOW}")
        turn = PivotTurn(tuple(messages[:-1]), tools, _action(messages[-1]), str(row["key"]), row["split"])
        _check(turn, place)
        turns.append(turn)
    return turns


HOW = "write such a file with: python -m envs pivots CONVERSATIONS --out FILE"


def _read(messages: Any, tools: Any, place: str) -> tuple[list[Message], tuple[ToolSpec, ...]]:
    try:
        told = [_with_text_arguments(message) for message in messages]
        specs = tuple(map(_tool, _parsed(tools) or ()))
        return [_without_think_tags(message) for message in read_messages(told)], specs
    except MALFORMED as error:
        raise PivotError(
            f"{place}: messages and tools must be as in a chat completion's request: {named(error)}"
        ) from None


def _tool(given: Any) -> ToolSpec:
    """A tool, whose parameters may be JSON text. Raises one of `MALFORMED`."""
    tool = _parsed(given)
    function = tool.get("function", tool)
    parameters = _parsed(function.get("parameters"))
    (spec,) = read_tools([{"function": {**function, "parameters": parameters}}])
    if not isinstance(spec.name, str) or not isinstance(spec.parameters, Mapping):
        raise TypeError(f"a tool needs a name as text and parameters as an object, got {shown(given)}")
    return spec


def _parsed(value: Any) -> Any:
    """The value, or what it is the JSON text of. Raises `ValueError`."""
    return json.loads(value) if isinstance(value, str) and value.strip() else value


def _with_text_arguments(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """The message with the arguments of its calls as JSON text, as chat completions have them.

    Some files hold them as objects, and the name beside them (`python -m sft from-rollouts`). Raises `ValueError` for
    arguments that are no JSON object.
    """
    calls = []
    for call in message.get("tool_calls") or ():
        function = call.get("function", call)
        given = function.get("arguments") or "{}"
        arguments = _parsed(given)
        if not isinstance(arguments, dict):
            raise ValueError(f"the arguments of a call must be a JSON object, got {shown(given)}")
        calls.append({"id": call.get("id"), "function": {**function, "arguments": json.dumps(arguments)}})
    return {**message, "tool_calls": calls} if calls else message


def _without_think_tags(message: Message) -> Message:
    """The message with the reasoning that stands in its content moved to where it belongs."""
    before, end, answer = message.content.partition(THINK_END)
    if message.role != "assistant" or message.reasoning or not end or not before.lstrip().startswith(THINK):
        return message
    reasoning = before.lstrip().removeprefix(THINK).strip("\n")
    return Message("assistant", answer.lstrip("\n"), reasoning, message.tool_calls)


def _identity(messages: Sequence[Message]) -> str:
    """The same for conversations that begin with the same messages, up to the first reply."""
    first = next((place for place, message in enumerate(messages) if message.role == "assistant"), len(messages))
    told = json.dumps([[message.role, message.content] for message in messages[:first]])
    return hashlib.sha256(told.encode()).hexdigest()[:NUM_KEY_CHARACTERS]


def _check(turn: PivotTurn, place: str) -> None:
    """Raises `PivotError` for an expert's call that no policy could make."""
    schemas = {tool.name: tool.parameters for tool in turn.tools}
    for call in turn.action.tool_calls:
        if call.name not in schemas:
            known = ", ".join(schemas) or "none"
            raise PivotError(f"{place}: the expert calls {call.name!r}, which is not among the row's tools ({known})")
        try:
            normal_call((call.name, call.arguments), schemas, "spaces")
        except NotComparableError as error:
            raise PivotError(f"{place}: the expert's call of {call.name} cannot be compared: {error}") from None
