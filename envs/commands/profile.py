"""`python -m envs profile`: which tasks are too easy, too hard, or worth training on?

What it writes is read by curricula (`environments.ID.curriculum.profile` of an experiment).
"""

import functools
import json
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from envs.registry import UnknownEnvironmentError, make
from envs.rollout_file import read_rollouts

Kind = Literal["too easy", "too hard", "useful", "too few tries"]
MIN_TRIES = 2


@dataclass(frozen=True, slots=True)
class TaskProfile:
    """Rewards of all tries at one task."""

    env_id: str
    seed: int
    split: str
    options: Mapping[str, Any]
    budget: Any
    """The thinking budget, where the rollouts tell one: with another it is another task."""
    num_tries: int
    mean: float
    deviation: float
    """Population standard deviation: 0 means that the group teaches nothing."""
    pass_rate: float
    """Share of tries with the full reward, as in `envs eval` and `rl evaluate`."""
    kind: Kind


def profile_tasks(rollouts: Sequence[Mapping[str, Any]]) -> list[TaskProfile]:
    """One profile a task, from the tries that count, by environment and mean reward."""
    tries: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for rollout in rollouts:
        if rollout.get("reward") is not None:
            task = {key: rollout["task"].get(key) for key in ("env_id", "seed", "split", "options", "budget")}
            tries[json.dumps(task, sort_keys=True)].append(rollout)
    profiles = [profile(json.loads(key), found) for key, found in tries.items()]
    return sorted(profiles, key=lambda one: (one.env_id, one.mean))


@functools.cache
def full_reward(env_id: str) -> float:
    """The top of the environment's range, or 1 where it is not installed here."""
    try:
        return make(env_id).reward_range[1]
    except UnknownEnvironmentError:
        return 1.0


def profile(task: Mapping[str, Any], tries: Sequence[Mapping[str, Any]]) -> TaskProfile:
    rewards = [rollout["reward"] for rollout in tries]
    pass_rate = sum(reward >= full_reward(task["env_id"]) - 1e-9 for reward in rewards) / len(rewards)
    deviation = statistics.pstdev(rewards)
    kind: Kind = "useful"
    if len(rewards) < MIN_TRIES:
        kind = "too few tries"
    elif deviation < 1e-9:
        kind = "too easy" if pass_rate == 1.0 else "too hard"
    return TaskProfile(**task, num_tries=len(rewards), mean=statistics.fmean(rewards), deviation=deviation,
                       pass_rate=pass_rate, kind=kind)  # fmt: skip


def print_profile(console: Console, place: Path, out: Path | None) -> None:
    """A line an environment, and every task's profile into `out`."""
    profiles = profile_tasks(list(read_rollouts(place)))
    table = Table("environment", "tasks", "tries a task", "mean", "pass rate", "too easy", "too hard", "useful")
    for env_id in sorted({one.env_id for one in profiles}):
        own = [one for one in profiles if one.env_id == env_id]
        shares = [sum(one.kind == kind for one in own) / len(own) for kind in ("too easy", "too hard", "useful")]
        table.add_row(
            env_id,
            str(len(own)),
            f"{statistics.fmean(one.num_tries for one in own):.1f}",
            f"{statistics.fmean(one.mean for one in own):.3f}",
            f"{statistics.fmean(one.pass_rate for one in own):.3f}",
            *(f"{share:.0%}" for share in shares),
        )
    console.print(table)
    if out is not None:
        out.write_text("".join(json.dumps(asdict(one)) + "\n" for one in profiles))
