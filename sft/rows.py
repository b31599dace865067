"""How are conversations read from the rows of a JSONL file, or of a folder written by `datasets`?

The row format (also in sft/README.md):

    {"messages": [...], "tools": [...]}

`messages` are OpenAI-like: `role` (system, user, assistant, tool) and `content` (text); an assistant's message may have
`reasoning_content` (text) and `tool_calls`, a tool's message `name`. A call is `{"name", "arguments"}`, or the same
inside `function`; arguments are an object, or its JSON text. `tools` may be missing, null, a list, or its JSON text; a
tool is `{"name", "description", "parameters"}`, or the same inside `function`, its parameters a JSON Schema.

An assistant's content that begins with `<think>` holds its reasoning up to `</think>`; if the chat format has no
think block, the content is left unchanged. A row without any reasoning is trained with budget `off`. Messages after the
last reply are left out. Half of a surrogate pair is replaced, as it is in rollouts.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from envs.messages import Message, Role, ToolCall, ToolSpec, valid
from rl.chat.calls.parameter_values import takes_null
from rl.data_types import Budget

ROLES: tuple[Role, ...] = get_args(Role)
THINK, THINK_END = "<think>", "</think>"


class SftDataError(ValueError):
    """Conversations that cannot be trained on. Says which file and row, or which environment and seed."""


class _BadRow(ValueError):
    """What is wrong with a row, without its position."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages up to the last reply, with their tools, thinking budget and source."""

    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...]
    budget: Budget
    source: str
    cut_at: float | None = None
    """If the reasoning is to be cut at a random budget: the position, as a share of its tokens."""


def read_conversations(path: Path, *, has_thinking: bool = True) -> list[Conversation]:
    """Conversations of a JSONL file or a `datasets` folder (its split `train`).

    `has_thinking` says whether the chat format has a think block. Raises `SftDataError`, which counts the bad rows
    and names the first.
    """
    rows = _jsonl_rows(path) if path.is_file() else _folder_rows(path)
    conversations, problems = [], []
    for number, row in rows:
        source = f"{path}, row {number}"
        try:
            conversations.append(_read_row(row, source, has_thinking))
        except _BadRow as error:
            problems.append(f"{source}: {error}")
    if problems:
        raise SftDataError(
            f"{len(problems)} of {len(conversations) + len(problems)} rows are bad; first: {problems[0]}"
        )
    if not conversations:
        raise SftDataError(f"{path} holds no conversations")
    return conversations


def to_last_reply(messages: Iterable[Message]) -> tuple[Message, ...]:
    """The messages up to the last reply; later messages are not trained."""
    messages = tuple(messages)
    last = max(index for index, message in enumerate(messages) if message.role == "assistant")
    return messages[: last + 1]


def _jsonl_rows(path: Path) -> Iterable[tuple[int, Any]]:
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, _parsed(line, f"{path}, row {number}")
    except OSError as error:
        raise SftDataError(f"{path} cannot be read: {error}") from None


def _parsed(line: bytes, source: str) -> Any:
    try:
        return valid(json.loads(line.decode("utf-8-sig")))
    except UnicodeDecodeError as error:
        raise SftDataError(f"{source}: not UTF-8: {error}; convert the file") from None
    except (ValueError, RecursionError) as error:
        raise SftDataError(f"{source}: not JSON: {error}") from None


def _folder_rows(path: Path) -> Iterable[tuple[int, Any]]:
    from datasets import DatasetDict, load_from_disk

    try:
        data = load_from_disk(str(path))
    except (FileNotFoundError, ValueError) as error:
        raise SftDataError(f"{path} is neither a JSONL file nor a folder written by datasets: {error}") from None
    if isinstance(data, DatasetDict):
        if "train" not in data:
            raise SftDataError(f"{path} has no split 'train', only {', '.join(map(str, data))}")
        data = data["train"]
    return ((number, valid(_without_filling(row))) for number, row in enumerate(data, 1))


def _without_filling(value: Any) -> Any:
    """The value without the keys that are None: a `datasets` column gives each object the keys of all objects."""
    if isinstance(value, Mapping):
        return {key: _without_filling(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_filling(item) for item in value]
    return value


def _read_row(row: Any, source: str, has_thinking: bool) -> Conversation:
    if not isinstance(row, Mapping) or not isinstance(row.get("messages"), list) or not row["messages"]:
        raise _BadRow("no list 'messages'")
    tools = tuple(_read_tool(tool) for tool in _read_list(row.get("tools"), "tools"))
    messages = tuple(_read_message(message, tools, has_thinking) for message in row["messages"])
    if all(message.role != "assistant" for message in messages):
        raise _BadRow("no assistant message, so nothing to train on")
    budget: Budget = "unlimited" if any(message.reasoning for message in messages) else "off"
    return Conversation(to_last_reply(messages), tools, budget, source)


def _read_message(message: Any, tools: tuple[ToolSpec, ...], has_thinking: bool) -> Message:
    role = message.get("role") if isinstance(message, Mapping) else None
    if role not in ROLES:
        raise _BadRow(f"a message's role must be one of {', '.join(ROLES)}, got {role!r}")
    content, reasoning, name = (_read_text(message, key) for key in ("content", "reasoning_content", "name"))
    if role == "assistant" and has_thinking:
        content, reasoning = _split_thinking(content, reasoning)
    calls = tuple(_read_call(call, tools) for call in _read_list(message.get("tool_calls"), "a message's tool_calls"))
    if role != "assistant" and (reasoning or calls):
        raise _BadRow(f"a message of role {role} has reasoning or tool calls, which only an assistant's may have")
    return Message(role, content, reasoning, calls, name)


def _read_text(message: Mapping[str, Any], key: str) -> str:
    value = message.get(key)
    if value is not None and not isinstance(value, str):
        raise _BadRow(f"a message's {key} must be text, got {type(value).__name__}")
    return value or ""


def _split_thinking(content: str, reasoning: str) -> tuple[str, str]:
    """Content and reasoning, split if the reasoning is in the content between tags."""
    if THINK not in content and THINK_END not in content:
        return content, reasoning
    before, _, rest = content.partition(THINK)
    inside, end, answer = rest.partition(THINK_END)
    if before.strip() or not end or THINK in rest or THINK_END in answer or reasoning:
        raise _BadRow(
            f"an assistant's content has {THINK} or {THINK_END} other than as one block at its beginning; give the"
            " reasoning as reasoning_content"
        )
    return answer.lstrip("\n"), inside.strip("\n")


def _read_call(call: Any, tools: tuple[ToolSpec, ...]) -> ToolCall:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    given = (function.get("arguments") or {}) if isinstance(function, Mapping) else None
    arguments = _from_json(given, "a call's arguments") if isinstance(given, str) else given
    if not isinstance(name, str) or not name or not isinstance(arguments, Mapping):
        raise _BadRow(f"a tool call needs a name and arguments as an object, got {call!r:.300}")
    if not isinstance(given, str):  # `datasets` fills objects with None on export, but not texts
        schema = next((tool.parameters for tool in tools if tool.name == name), None)
        arguments = {
            key: value for key, value in arguments.items() if value is not None or takes_null(str(key), schema)
        }
    return ToolCall(name, dict(arguments))


def _read_tool(tool: Any) -> ToolSpec:
    tool = _from_json(tool, "a tool") if isinstance(tool, str) else tool
    function = tool.get("function", tool) if isinstance(tool, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str) or not name:
        raise _BadRow(f"a tool needs a name, got {tool!r:.300}")
    description, given = function.get("description") or "", function.get("parameters") or {}
    parameters = _from_json(given, f"the parameters of tool {name}") if isinstance(given, str) else given
    if not isinstance(description, str) or not isinstance(parameters, Mapping):
        raise _BadRow(f"tool {name} needs a description as text and parameters as an object, got {tool!r:.300}")
    return ToolSpec(name, description, parameters)


def _read_list(value: Any, what: str) -> list[Any]:
    """A list, which may be missing or JSON text."""
    read = _from_json(value, what) if isinstance(value, str) and value.strip() else value or []
    if not isinstance(read, list):
        raise _BadRow(f"{what} must be a list, or its JSON text, got {type(read).__name__}")
    return read


def _from_json(text: str, what: str) -> Any:
    try:
        return valid(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise _BadRow(f"{what}: text that is not JSON ({error}): {text!r:.100}") from None
