"""Which rollouts do trackers show as a table, and how is a rollout a row of text and numbers?"""

import json
from collections.abc import Sequence

from envs.messages import Message
from rl.data_types import Group, Rollout
from rl.runs.sinks.sink import Row

MAX_ROLLOUTS = 8
MAX_CHARACTERS = 4000


def sampled_rows(step: int, groups: Sequence[Group]) -> list[Row]:
    """At most `MAX_ROLLOUTS` rollouts, evenly spread over the groups; longer texts lose their middle."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    num = min(MAX_ROLLOUTS, len(rollouts))
    return [_row(step, rollouts[place * len(rollouts) // num]) for place in range(num)]


def _row(step: int, rollout: Rollout) -> Row:
    messages, roles = rollout.messages, [message.role for message in rollout.messages]
    first = roles.index("assistant") if "assistant" in roles else len(roles)
    return {
        "step": step,
        "env_id": rollout.task.env_id,
        "seed": rollout.task.seed,
        "member": rollout.member,
        "budget": str(rollout.task.budget),
        "outcome": str(rollout.outcome),
        "reward": rollout.reward,
        "reply_tokens": rollout.num_reply_tokens,
        "prompt": _cut("\n\n".join(map(_text, messages[:first]))),
        "replies": _cut("\n\n".join(map(_text, messages[first:]))),
        "error": _cut(rollout.error),
    }


def _text(message: Message) -> str:
    calls = [f"{call.name}({json.dumps(dict(call.arguments), default=str)})" for call in message.tool_calls]
    reasoning = f"<think>{message.reasoning}</think>" if message.reasoning else ""
    return "\n".join(filter(None, [f"[{message.role}]", reasoning, message.content, *calls]))


def _cut(text: str) -> str:
    half = MAX_CHARACTERS // 2
    if len(text) <= MAX_CHARACTERS:
        return text
    return f"{text[:half]}\n[{len(text) - 2 * half} characters left out]\n{text[-half:]}"
