"""Which rollouts of a run become rows? The good ones of each task, few of them; for pairs see `sft.rollout_pairs`.

Rejection sampling: the supervised stage trains on what a policy, its own or another, wrote and an environment rewarded.
Tasks of the held-out split are never taken, nor replies with think tags in wrong places; nor, but as a worst, rollouts
that were cut or broke a rule, and those in which a thinking budget wrote the end of the reasoning.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs.json_lines import JsonObject
from envs.judge_client import MODEL, URL
from envs.messages import Message
from envs.rollout_file import message_from, message_object, read_rollouts
from envs.session import Session
from rl.config.mixture import RowChoice
from rl.data_types import EFFORTS, Effort, first_reply
from sft.messages import BadRow, split_thinking
from sft.rows import SftDataError, to_last_reply


@dataclass(frozen=True, slots=True)
class Played:
    """A rollout, without its tokens."""

    messages: tuple[Message, ...]
    reward: float
    is_sound: bool
    """Whether it ended by itself and broke no rule."""
    first_reply: int
    """Place of the policy's first reply; the opening before it may have replies too."""
    group_id: str = ""
    """Empty in files that no trainer wrote."""

    @property
    def written(self) -> list[str]:
        """What the policy wrote, tool calls included."""
        return [
            text
            for one in self.messages[self.first_reply :]
            if one.role == "assistant"
            for text in (one.reasoning, *one.answer_texts)
        ]

    @property
    def num_characters(self) -> int:
        return sum(map(len, self.written))


@dataclass(slots=True)
class PlayedTask:
    """A task with all its rollouts that count."""

    env_id: str
    seed: int
    options: JsonObject
    effort: Effort | None
    """Which its prompts stated."""
    rollouts: list[Played]
    num_unreadable: int = 0
    """Rollouts whose replies no row can say."""


def played_tasks(place: Path) -> list[PlayedTask]:
    """The training tasks of a run folder or a file of rollouts, in the order in which they were first played.

    Raises what `envs.rollout_file.read_rollouts` raises.
    """
    tasks: dict[str, PlayedTask] = {}
    for saved in read_rollouts(place):
        task, reward = saved["task"], saved.get("reward")
        if task.get("split", "train") != "train" or reward is None:
            continue
        effort = task.get("budget") if task.get("budget") in EFFORTS else None
        about = (task["env_id"], task["seed"], task.get("options", {}), effort)
        found = tasks.setdefault(json.dumps(about, sort_keys=True, default=str), PlayedTask(*about, []))
        is_sound = saved.get("outcome") == "ok" and not saved.get("malformed_calls")
        messages = tuple(map(message_from, saved["messages"]))
        # A file that no trainer wrote has no turns: all replies are the policy's.
        num_turns = len(saved.get("turns", ())) or sum(message.role == "assistant" for message in messages)
        if not _can_be_read(messages):
            found.num_unreadable += 1
        elif (start := first_reply(messages, num_turns)) < len(messages):
            found.rollouts.append(Played(messages, float(reward), is_sound, start, saved.get("group_id", "")))
    return list(tasks.values())


def _can_be_read(messages: Sequence[Message]) -> bool:
    """Whether rows say what was sampled: think tags that a reply has in wrong places were control tokens, maybe."""
    try:
        for message in messages:
            if message.role == "assistant":
                split_thinking(message.content, message.reasoning)
    except BadRow:
        return False
    return True


def chosen_rows(
    tasks: Sequence[PlayedTask], reward_min: float, per_task: int, choice: RowChoice
) -> Iterator[JsonObject]:
    """At most `per_task` rows of each task whose reward is at least `reward_min`, in the form of `messages`.

    `shortest` takes those of the fewest characters; `diverse` the shortest, and then always the one that has least in
    common (three words in a row) with what was taken.
    """
    for task in tasks:
        good = [one for one in task.rollouts if one.is_sound and one.reward >= reward_min]
        distinct = {"\n".join(one.written): one for one in reversed(good)}
        ordered = sorted(distinct.values(), key=lambda one: one.num_characters)
        taken = ordered[:per_task] if choice == "shortest" else _diverse(ordered, per_task)
        for one in taken:
            opening = message_objects(one.messages[: one.first_reply])
            for message in opening:
                message |= {"weight": 0} if message["role"] == "assistant" else {}  # the policy did not write it
            yield {
                "messages": opening + message_objects(to_last_reply(one.messages)[one.first_reply :]),
                "tools": tools_of(task),
                **({"effort": task.effort} if task.effort and any(reply.reasoning for reply in one.messages) else {}),
                **origin(task, one.reward),
            }


def left_out(tasks: Sequence[PlayedTask], reward_min: float | None) -> Mapping[str, int]:
    """How many rollouts of training tasks are left out, by the rule; without `reward_min`, by those of pairs."""
    counts = {"with think tags in wrong places": sum(task.num_unreadable for task in tasks)}
    if reward_min is not None:
        played = [one for task in tasks for one in task.rollouts]
        counts["cut, with an unreadable call, or ended by a budget"] = sum(not one.is_sound for one in played)
        counts["of a lower reward"] = sum(one.is_sound and one.reward < reward_min for one in played)
    return counts


def write_rows(rows: Iterator[JsonObject], out: Path) -> int:
    """Write JSON lines; the number of rows. Raises `SftDataError` if there is none, and then leaves no file."""
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    if not lines:
        raise SftDataError("no rollout is good enough: lower --reward-min (or --margin-min), or take another run")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("".join(lines), encoding="utf-8")
    return len(lines)


def _diverse(ordered: Sequence[Played], num: int) -> list[Played]:
    taken, left = list(ordered[:1]), list(ordered[1:])
    while left and len(taken) < num:
        least = min(left, key=lambda one: max(_common(one, other) for other in taken))
        left.remove(least)
        taken.append(least)
    return taken


def _common(a: Played, b: Played) -> float:
    """Jaccard similarity of three words in a row."""
    first, second = _trigrams(a), _trigrams(b)
    return len(first & second) / max(1, len(first | second))


def _trigrams(played: Played) -> set[tuple[str, ...]]:
    words = " ".join(played.written).split()
    return set(zip(words, words[1:], words[2:], strict=False)) or {tuple(words)}


def message_objects(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Without keys that are empty, except for `role` and `content`."""
    return [
        {key: value for key, value in message_object(one).items() if value or key in ("role", "content")}
        for one in messages
    ]


def tools_of(task: PlayedTask) -> list[dict[str, Any]]:
    """The environment's tools in this task: some have them only once they are reset. Raises `EnvFailure`."""
    with _announced_judge(), Session.installed(task.env_id) as session:
        session.reset(task.seed, {**task.options, "split": "train"})
        return [
            {"name": one.name, "description": one.description, "parameters": dict(one.parameters)}
            for one in session.env.tools
        ]


@contextlib.contextmanager
def _announced_judge() -> Iterator[None]:
    """Let environments that ask a judge be opened, where none is named: they ask it nothing before the first reply."""
    from rl.rollouts.judge import NAME, NOWHERE  # imports Ray, which takes a second

    missing = {name: value for name, value in ((URL, NOWHERE), (MODEL, NAME)) if not os.environ.get(name)}
    os.environ |= missing
    try:
        yield
    finally:
        for name in missing:
            del os.environ[name]


def origin(task: PlayedTask, reward: float) -> JsonObject:
    return {"env_id": task.env_id, "seed": task.seed, "reward": reward}
