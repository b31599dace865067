"""`python -m envs replay`: what would saved rollouts earn now, after a change of the scorer?"""

import math
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from envs.commands.output import write_lines
from envs.errors import named
from envs.messages import Message, Reply, valid
from envs.player import Choose, EnvTask, NoReplyError, play
from envs.registry import make
from envs.rollout_file import message_from, read_rollouts
from envs.session import EnvFailure, Session

MAX_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a rollout earned when it was saved and what it earns now; None if it had or has no reward."""

    rollout: Mapping[str, Any]
    before: float | None
    now: float | None
    parts: Mapping[str, float]
    problem: str = ""
    """Why it could not be scored again, such as an environment whose messages have changed."""

    @property
    def differs(self) -> bool:
        if self.before is None or self.now is None:
            return False
        return not math.isclose(self.before, self.now, abs_tol=1e-6)


def replay_file(console: Console, place: Path, out: Path | None) -> bool:
    """Score every rollout again, print what changed, and return whether nothing did and everything could be scored."""
    rollouts = list(read_rollouts(place))
    replayed = [replay(rollout) for rollout in track(rollouts, "scoring again", console=console, transient=True)]
    counts = Counter("changed" if one.differs else "problem" if one.problem else "same" for one in replayed)
    for one in [one for one in replayed if one.differs or one.problem][:MAX_SHOWN]:
        task = one.rollout["task"]
        parts = f"{dict(one.rollout['reward_parts'])} -> {dict(one.parts)}"
        what = one.problem or f"{one.before:.3f} -> {one.now:.3f}  {parts}"
        console.print(f"{task['env_id']} seed {task['seed']}: {what}", markup=False, highlight=False)
    total = f"{counts['same']} the same, {counts['changed']} changed, {counts['problem']} could not be scored"
    scored = [one for one in replayed if one.before is not None and one.now is not None]
    console.print(f"{len(replayed)} rollouts: {total}")
    if scored:
        means = [statistics.fmean(getattr(one, when) for one in scored) for when in ("before", "now")]
        console.print(f"mean reward {means[0]:.3f} -> {means[1]:.3f}")
    if out is not None:
        write_lines(out, map(as_line, replayed))
    return counts["same"] == len(replayed)


def as_line(one: Replayed) -> dict[str, Any]:
    return {
        "task": one.rollout["task"],
        "before": one.before,
        "now": one.now,
        "reward_parts": dict(one.parts),
        "problem": one.problem,
    }


def replay(rollout: Mapping[str, Any]) -> Replayed:
    """Score one rollout again: open its task anew and play its replies in order. Never raises for failures."""
    before = rollout.get("reward")
    if before is None:
        return Replayed(rollout, None, None, {})
    try:
        saved = rollout["task"]
        task = EnvTask(saved["env_id"], saved["seed"], saved["split"], saved["options"])
        choose = saved_replies([valid(message_from(message)) for message in rollout["messages"]])
    except (KeyError, TypeError, AttributeError) as error:
        return Replayed(rollout, before, None, {}, f"it was not saved completely: {named(error)}")
    with Session(lambda: make(task.env_id), task.env_id) as session:
        try:
            compares = session.env.scores_groups
        except EnvFailure as failure:
            return Replayed(rollout, before, None, {}, failure.reason)
        if compares:
            return Replayed(rollout, before, None, {}, "its reward came from comparing a group: play it again (eval)")
        again = play(task, choose, session)
    return Replayed(rollout, before, again.reward, again.reward_parts, again.error)


def saved_replies(saved: Sequence[Message]) -> Choose:
    """Chooses the replies of a saved conversation in order.

    Raises `NoReplyError` if the environment opens the task with other messages.
    """
    left: Iterator[Reply] | None = None

    def choose(session: Session, messages: Sequence[Message]) -> Reply | None:
        nonlocal left
        if left is None:  # the first turn: the messages so far are the opening
            if list(messages) != list(saved[: len(messages)]):
                raise NoReplyError("the environment opens this task with other messages now")
            left = played_replies(saved[len(messages) :])
        return next(left, None)

    return choose


def played_replies(messages: Sequence[Message]) -> Iterator[Reply]:
    """The replies that were played, without those whose tool calls could not be parsed or were cut off."""
    for place, message in enumerate(messages):
        following = messages[place + 1 : place + 2]
        could_not_be_read = any(after.role == "tool" and not after.name for after in following)
        was_cut_off = bool(message.tool_calls) and not following
        if message.role == "assistant" and not could_not_be_read and not was_cut_off:
            yield Reply(message.content, message.reasoning, message.tool_calls)
