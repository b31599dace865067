"""`python -m envs replay`: what would saved rollouts earn now, after a change of the scorer?"""

import json
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from envs.event_loop import settle
from envs.messages import Message, Reply
from envs.registry import make
from envs.rollout_file import message_from, read_rollouts
from envs.text_env import TextEnv

MAX_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a rollout earned when it was saved and what it earns now; None where it had or has no reward."""

    rollout: Mapping[str, Any]
    before: float | None
    now: float | None
    parts: Mapping[str, float]
    problem: str = ""
    """Why it could not be scored again; such as an environment that says other things now."""

    @property
    def differs(self) -> bool:
        if self.before is None or self.now is None:
            return False
        return not math.isclose(self.before, self.now, abs_tol=1e-6)


def replay_file(console: Console, place: Path, out: Path | None) -> bool:
    """Score every rollout again, print what changed, and say whether nothing did and everything could be scored."""
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
        out.write_text("".join(json.dumps(as_line(one)) + "\n" for one in replayed))
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
    """One rollout scored again: its task opened anew, its replies played in order. Never raises for what goes wrong."""
    task, before = rollout["task"], rollout.get("reward")
    messages = [message_from(message) for message in rollout["messages"]]
    if before is None:
        return Replayed(rollout, None, None, {})
    env: TextEnv | None = None
    try:
        env = make(task["env_id"])
        if env.scores_groups:
            return Replayed(rollout, before, None, {}, "its reward came from comparing a group: play it again (eval)")
        opening, _ = settle(env.reset(seed=task["seed"], options={**task["options"], "split": task["split"]}))
        if list(opening) != messages[: len(opening)]:
            return Replayed(rollout, before, None, {}, "the environment opens this task with other messages now")
        now, parts = play_again(env, messages[len(opening) :])
    except Exception as error:
        return Replayed(rollout, before, None, {}, f"{type(error).__name__}: {error}")
    finally:
        if env is not None:
            settle(env.close())
    return Replayed(rollout, before, now, parts)


def play_again(env: TextEnv, messages: Sequence[Message]) -> tuple[float, dict[str, float]]:
    """Step through the saved replies. Tool calls that could not be read, or were cut off, were never played."""
    total, parts = 0.0, {}
    for place, message in enumerate(messages):
        following = messages[place + 1 : place + 2]
        could_not_be_read = any(after.role == "tool" and not after.name for after in following)
        was_cut_off = bool(message.tool_calls) and not following
        if message.role != "assistant" or could_not_be_read or was_cut_off:
            continue
        reply = Reply(message.content, message.reasoning, message.tool_calls)
        _, reward, terminated, truncated, info = settle(env.step(reply))
        total += reward
        parts |= info.get("reward_parts", {})
        if terminated or truncated:
            break
    return total, parts
