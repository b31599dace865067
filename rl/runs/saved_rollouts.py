"""How are rollouts saved as JSON lines and read back? `envs.rollout_file` reads them as objects without the trainer.

One line per rollout: `step`, `kind` (`train` or `evaluation`) and every field of `rl.data_types.Rollout`. Task, turns
and messages are objects; `envs.rollout_file.array_object` writes arrays of tokens (base64).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from envs.json_lines import JsonObject
from envs.rollout_file import array_from, array_object, message_from, message_object, read_rollouts
from rl.data_types import Group, Outcome, Rollout, Task, Turn
from rl.runs.files import append_line
from rl.runs.folder import Kind
from rl.tokens import Tokens


def write_rollouts(file: TextIO, step: int, kind: Kind, groups: Sequence[Group]) -> None:
    """Append every rollout of the groups, in order."""
    for group in groups:
        for rollout in group.rollouts:
            append_line(file, {"step": step, "kind": kind, **rollout_object(rollout)})


def load_rollouts(place: Path) -> Iterator[Rollout]:
    """Every rollout of a file or run folder. Raises what `envs.rollout_file.read_rollouts` raises."""
    return map(rollout_from, read_rollouts(place))


def rollout_object(rollout: Rollout) -> JsonObject:
    """A rollout as JSON can hold it. `dataclasses.asdict` would copy every array."""
    return {
        "task": task_object(rollout.task),
        "group_id": rollout.group_id,
        "member": rollout.member,
        "reward": rollout.reward,
        "reward_parts": dict(rollout.reward_parts),
        "outcome": str(rollout.outcome),
        "error": rollout.error,
        "malformed_calls": dict(rollout.malformed_calls),
        "budget_violation": rollout.budget_violation,
        "num_attempts": rollout.num_attempts,
        "seconds": rollout.seconds,
        "messages": [message_object(message) for message in rollout.messages],
        "turns": [
            {
                "prompt": _tokens_object(turn.prompt),
                "reply": _tokens_object(turn.reply),
                "finish": turn.finish,
                "is_start": turn.is_start,
            }
            for turn in rollout.turns
        ],
    }


def task_object(task: Task) -> JsonObject:
    return {
        "ordinal": task.ordinal,
        "env_id": task.env_id,
        "seed": task.seed,
        "split": task.split,
        "budget": task.budget,
        "options": dict(task.options),
    }


def rollout_from(saved: JsonObject, task: Task | None = None) -> Rollout:
    """The inverse of `rollout_object`; with this task if one is given, as JSON may have changed its options."""
    turns = tuple(
        Turn(_tokens_from(turn["prompt"]), _tokens_from(turn["reply"]), turn["finish"], turn["is_start"])
        for turn in saved["turns"]
    )
    fields = {
        name: saved[name]
        for name in (
            *("group_id", "member", "reward", "reward_parts", "error"),
            *("malformed_calls", "budget_violation", "num_attempts", "seconds"),
        )
    }
    messages = tuple(map(message_from, saved["messages"]))
    task = task or Task(**saved["task"])
    return Rollout(task, turns=turns, messages=messages, outcome=Outcome(saved["outcome"]), **fields)


def _tokens_object(tokens: Tokens) -> JsonObject:
    arrays = {"ids": tokens.ids, "sampled": tokens.sampled, **tokens.columns}
    return {name: array_object(array) for name, array in arrays.items()}


def _tokens_from(saved: JsonObject) -> Tokens:
    arrays = {name: array_from(array) for name, array in saved.items()}
    return Tokens.make(arrays.pop("ids"), arrays.pop("sampled"), arrays)
