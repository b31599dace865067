"""How are rollouts saved as JSON lines, for people, for scoring again, and for pages? One rollout per line.

A line has `task` (`env_id`, `seed`, `split`, `options`), `messages`, `reward`, `reward_parts`, `outcome`, `error`. If a
trainer wrote it, it also has `turns`, each with the tokens of `prompt` (those new since the last reply) and `reply`:
`ids`, `sampled` and columns such as `logprob` and `version`, as arrays that `array_from` reads.
"""

import base64
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from envs.errors import InputError
from envs.json_lines import read_lines
from envs.messages import Message, ToolCall, valid


class RolloutFileError(InputError):
    """A file contains no rollouts, or a line is not a rollout."""


def message_object(message: Message) -> dict[str, Any]:
    """A message as a JSON object."""
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


def array_object(array: np.ndarray) -> dict[str, Any]:
    """An array as a JSON object: its type, shape and bytes. Decimal digits would take five times the space."""
    data = base64.b64encode(array.tobytes()).decode("ascii")
    return {"dtype": array.dtype.str, "shape": list(array.shape), "base64": data}


def array_from(saved: Mapping[str, Any]) -> np.ndarray:
    """The inverse of `array_object`."""
    return np.frombuffer(base64.b64decode(saved["base64"]), saved["dtype"]).reshape(saved["shape"])


def rollout_paths(place: Path) -> list[Path]:
    """The rollout files of a run folder, oldest first, or `place` itself if it is a file. Raises `RolloutFileError`."""
    if place.is_file():
        return [place]
    paths = sorted(path for folder in (place, place / "rollouts") for path in folder.glob("*.jsonl"))
    paths = [path for path in paths if path.name != "metrics.jsonl"]
    if not paths:
        raise RolloutFileError(
            f"{place} is neither a file of rollouts nor a folder with such files; give RUN or RUN/rollouts/FILE"
        )
    return paths


def read_rollouts(place: Path) -> Iterator[dict[str, Any]]:
    """Every rollout of a file or run folder; an incomplete last line is skipped.

    Raises `RolloutFileError` for anything that is not a rollout, `JsonLineError` for a damaged line.
    """
    for path in rollout_paths(place):
        for number, rollout in enumerate(read_lines(path), start=1):
            if not {"task", "messages"} <= rollout.keys():
                raise RolloutFileError(f"{path}, line {number} is not a rollout: it lacks task or messages")
            yield valid(rollout)  # the writer may have escaped a lone surrogate
