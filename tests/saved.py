"""Saved rollouts as dictionaries, and files of them."""

import json
from pathlib import Path
from typing import Any

from envs.gold import gold_conversation
from envs.registry import make
from envs.rollout_file import message_object


def saved(env_id: str, seed: int, reward: float | None = 1.0, **changes: Any) -> dict[str, Any]:
    """A rollout of gold replies as it is saved."""
    options = {"split": "train"}
    messages = gold_conversation(make(env_id), seed, options)
    task = {"env_id": env_id, "seed": seed, "split": "train", "options": {}}
    return {
        "task": task,
        "messages": [message_object(message) for message in messages],
        "reward": reward,
        "reward_parts": {},
        "outcome": "ok",
        "error": "",
        **changes,
    }


def write(path: Path, rollouts: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(rollout) + "\n" for rollout in rollouts))
    return path
