"""How are rollouts written as JSON lines? `envs.rollout_file` reads them.

One line a rollout: `step`, `kind` (`train` or `evaluation`) and every field of `rl.data_types.Rollout`, its task, turns
and messages as objects.
"""

from collections.abc import Sequence
from typing import Any, TextIO

from envs.rollout_file import message_object
from rl.data_types import Group, Rollout
from rl.runs.files import append_line
from rl.runs.folder import Kind


def write_rollouts(file: TextIO, step: int, kind: Kind, groups: Sequence[Group]) -> None:
    """Append every rollout of the groups, in order."""
    for group in groups:
        for rollout in group.rollouts:
            append_line(file, {"step": step, "kind": kind, **rollout_object(rollout)})


def rollout_object(rollout: Rollout) -> dict[str, Any]:
    """A rollout as JSON can hold it. `dataclasses.asdict` would copy every token of long replies one by one."""
    task = rollout.task
    return {
        "task": {
            "ordinal": task.ordinal,
            "env_id": task.env_id,
            "seed": task.seed,
            "split": task.split,
            "budget": task.budget,
            "options": dict(task.options),
        },
        "group_id": rollout.group_id,
        "member": rollout.member,
        "reward": rollout.reward,
        "reward_parts": dict(rollout.reward_parts),
        "outcome": str(rollout.outcome),
        "error": rollout.error,
        "num_malformed_calls": rollout.num_malformed_calls,
        "budget_violation": rollout.budget_violation,
        "num_attempts": rollout.num_attempts,
        "seconds": rollout.seconds,
        "messages": [message_object(message) for message in rollout.messages],
        "turns": [
            {
                "prompt_ids": turn.prompt_ids,
                "reply_ids": turn.reply_ids,
                "reply_logprobs": turn.reply_logprobs,
                "forced_mask": turn.forced_mask,
                "policy_versions": turn.policy_versions,
                "finish": turn.finish,
            }
            for turn in rollout.turns
        ],
    }
