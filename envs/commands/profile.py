"""`python -m envs profile`: which tasks are too easy, too hard, or worth training on?

Curricula read its output (`environments.ID.curriculum.profile` of an experiment).
"""

import json
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from envs.commands.output import write_lines
from envs.errors import InputError
from envs.facts import reward_range_of
from envs.results import is_full_reward
from envs.rollout_file import read_rollouts

Kind = Literal["too easy", "too hard", "useful", "too few tries"]
MIN_TRIES = 2


class ProfileError(InputError):
    """No profile can be made from these rollouts."""


@dataclass(frozen=True, slots=True)
class TaskProfile:
    """Rewards of all tries of one task."""

    env_id: str
    seed: int
    split: str
    options: Mapping[str, Any]
    budget: Any
    """The thinking budget, if the rollouts have one: a task with another budget is another task."""
    policy: str
    """The policy of these tries (`policy_of`): tries of two policies mixed say nothing about either."""
    num_tries: int
    mean: float
    deviation: float
    """Population standard deviation: 0 means that the group teaches nothing."""
    pass_rate: float
    """Share of tries with the full reward, as in `envs eval` and `rl evaluate`."""
    kind: Kind


def profile_tasks(rollouts: Sequence[Mapping[str, Any]]) -> list[TaskProfile]:
    """One profile per task and policy, from the tries that count, sorted by environment and mean reward."""
    tries: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for rollout in rollouts:
        if rollout.get("reward") is not None:
            task = {key: rollout["task"].get(key) for key in ("env_id", "seed", "split", "options", "budget")}
            task["policy"] = policy_of(rollout)
            tries[json.dumps(task, sort_keys=True)].append(rollout)
    profiles = [profile(json.loads(key), found) for key, found in tries.items()]
    return sorted(profiles, key=lambda one: (one.env_id, one.mean))


def policy_of(rollout: Mapping[str, Any]) -> str:
    """The policy that played: what `envs eval` wrote, else kind and step of a run, since each step has a new policy."""
    if rollout.get("policy"):
        return str(rollout["policy"])
    return f"{rollout.get('kind', 'train')} step {rollout['step']}" if rollout.get("step") is not None else ""


def profile(task: Mapping[str, Any], tries: Sequence[Mapping[str, Any]]) -> TaskProfile:
    rewards = [rollout["reward"] for rollout in tries]
    reward_range = reward_range_of(task["env_id"])
    pass_rate = sum(is_full_reward(reward, reward_range) for reward in rewards) / len(rewards)
    deviation = statistics.pstdev(rewards)
    kind: Kind = "useful"
    if len(rewards) < MIN_TRIES:
        kind = "too few tries"
    elif deviation < 1e-9:
        kind = "too easy" if pass_rate == 1.0 else "too hard"
    return TaskProfile(**task, num_tries=len(rewards), mean=statistics.fmean(rewards), deviation=deviation,
                       pass_rate=pass_rate, kind=kind)  # fmt: skip


def print_profile(
    console: Console, place: Path, out: Path | None, policy: str = "", max_mean: float | None = None
) -> None:
    """Print a line per environment, split and policy; write every task's profile to `out`.

    With `max_mean`, only tasks whose tries differ in reward and have at most this mean are written: the pivots of
    PivotRL (arXiv:2603.21383, which gives the two conditions). Raises `ProfileError`.
    """
    if max_mean is not None and out is None:
        raise ProfileError("--max-mean says which tasks are saved; name the file with --out")
    rollouts = list(read_rollouts(place))
    policies = list(dict.fromkeys(map(policy_of, rollouts)))
    if policy and policy not in policies:
        raise ProfileError(f"{place} has no rollouts of policy {policy!r}; it has: {', '.join(policies)}")
    if out is not None and not policy and len(policies) > 1:
        raise ProfileError(
            f"{place} contains rollouts of {len(policies)} policies ({policies[0]} to {policies[-1]}), but a profile"
            f" belongs to one policy: name it with --policy, such as --policy '{policies[-1]}'"
        )
    profiles = profile_tasks([one for one in rollouts if not policy or policy_of(one) == policy])
    table = Table(
        *("environment", "split", "policy", "tasks", "tries per task", "mean", "pass rate"),
        *("too easy", "too hard", "useful"),
    )
    for kind in sorted({(one.env_id, one.split or "", policies.index(one.policy)) for one in profiles}):
        own = [one for one in profiles if (one.env_id, one.split or "", policies.index(one.policy)) == kind]
        table.add_row(kind[0], kind[1], policies[kind[2]], *figures(own))
    console.print(table)
    if out is None:
        return
    if max_mean is not None:
        kept = [one for one in profiles if one.kind == "useful" and one.mean <= max_mean]
        if not kept:
            raise ProfileError(
                f"none of {len(profiles)} tasks has tries of different rewards with a mean of at most {max_mean:g};"
                " profile more tasks or tries, or raise --max-mean"
            )
        console.print(f"{len(kept)} of {len(profiles)} tasks are saved: rewards differ, mean at most {max_mean:g}")
        profiles = kept
    write_lines(out, map(asdict, profiles))


def figures(profiles: Sequence[TaskProfile]) -> list[str]:
    """The numbers in a line of the table."""
    shares = [sum(one.kind == kind for one in profiles) / len(profiles) for kind in ("too easy", "too hard", "useful")]
    return [
        str(len(profiles)),
        f"{statistics.fmean(one.num_tries for one in profiles):.1f}",
        f"{statistics.fmean(one.mean for one in profiles):.3f}",
        f"{statistics.fmean(one.pass_rate for one in profiles):.3f}",
        *(f"{share:.0%}" for share in shares),
    ]
