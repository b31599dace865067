"""How are rollouts kept as JSON lines, for people, for scoring again, and for pages? One rollout a line.

A line has `task` (`env_id`, `seed`, `split`, `options`), `messages`, `reward`, `reward_parts`, `outcome`, `error`, and
where a trainer wrote it, `turns` with the sampled tokens.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from envs.json_lines import read_lines
from envs.messages import Message, ToolCall


class RolloutFileError(ValueError):
    """A file that holds no rollouts, or a line that is none."""


def message_object(message: Message) -> dict[str, Any]:
    """A message as JSON can hold it."""
    calls = [{"name": call.name, "arguments": dict(call.arguments)} for call in message.tool_calls]
    return {
        "role": message.role,
        "content": message.content,
        "reasoning": message.reasoning,
        "tool_calls": calls,
        "name": message.name,
    }


def message_from(saved: Mapping[str, Any]) -> Message:
    """The inverse of `message_object`."""
    calls = tuple(ToolCall(call["name"], call["arguments"]) for call in saved.get("tool_calls", ()))
    return Message(saved["role"], saved["content"], saved.get("reasoning", ""), calls, saved.get("name", ""))


def rollout_paths(place: Path) -> list[Path]:
    """The files of rollouts of a run folder, oldest first, or the file itself. Raises `RolloutFileError`."""
    if place.is_file():
        return [place]
    paths = sorted(path for folder in (place, place / "rollouts") for path in folder.glob("*.jsonl"))
    paths = [path for path in paths if path.name != "metrics.jsonl"]
    if not paths:
        raise RolloutFileError(f"{place} is no file of rollouts and no folder with any; give RUN or RUN/rollouts/FILE")
    return paths


def read_rollouts(place: Path) -> Iterator[dict[str, Any]]:
    """Every rollout of a file or run folder; a torn last line is left out.

    Raises `RolloutFileError` for what is no rollout, `JsonLineError` for a damaged line.
    """
    for path in rollout_paths(place):
        for number, rollout in enumerate(read_lines(path), start=1):
            if not {"task", "messages"} <= rollout.keys():
                raise RolloutFileError(f"{path}, line {number} is no rollout: it has no task and messages")
            yield rollout
