"""`python -m envs eval`: how well does a model behind an OpenAI-compatible endpoint perform in an environment?"""

import math
import os
import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from envs.chat_completions import MALFORMED, openai_messages, openai_tools, read_reply
from envs.commands.options import open_once
from envs.commands.output import write_lines
from envs.errors import cut, named
from envs.facts import facts, reward_range_of
from envs.messages import Message, Reply, ToolSpec
from envs.player import EnvRollout, EnvTask, NoReplyError, play, score_group
from envs.results import is_full_reward
from envs.rollout_file import message_object
from envs.session import Session

KEY = "OPENAI_API_KEY"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where replies come from, and how they are sampled."""

    url: str
    model: str
    temperature: float | None
    """None leaves sampling to the endpoint's defaults."""
    max_tokens: int
    timeout_s: float
    at_once: int


class EndpointError(NoReplyError):
    """The endpoint gave no reply."""


def evaluate(
    console: Console,
    endpoint: Endpoint,
    env_id: str,
    options: dict[str, Any],
    *,
    split: str,
    num_tasks: int,
    num_tries: int,
    out: Path | None,
) -> list[dict[str, Any]]:
    """Play `num_tasks` tasks, `num_tries` times each. Print a summary; return the rollouts and write them to `out`.

    The tries of one task are a group: if the environment compares group members, they are compared. Raises `EnvFailure`
    for an environment that cannot be made; a later failure becomes a rollout's outcome.
    """
    open_once(env_id, {**options, "split": split})
    compares = facts(env_id).scores_groups
    tasks = [EnvTask(env_id, seed, split, options) for seed in range(num_tasks)]
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task(f"{env_id}, {endpoint.model}", total=num_tasks * num_tries)

        def one(task: EnvTask) -> EnvRollout:
            choose = lambda session, messages: ask(client, endpoint, session.env.tools, messages)  # noqa: E731
            rollout = play(task, choose, Session.installed(env_id))
            progress.advance(bar)
            return rollout

        with httpx.Client(timeout=endpoint.timeout_s) as client, ThreadPoolExecutor(endpoint.at_once) as pool:
            played = list(pool.map(one, [task for task in tasks for _ in range(num_tries)]))
            groups = [played[first : first + num_tries] for first in range(0, len(played), num_tries)]
            groups = list(pool.map(compared, tasks, groups)) if compares else groups
    pairs = [(task, rollout) for task, group in zip(tasks, groups, strict=True) for rollout in group]
    rollouts = [rollout_object(task, rollout, endpoint.model) for task, rollout in pairs]
    if out is not None:
        write_lines(out, rollouts)
    print_summary(console, env_id, rollouts, num_tries)
    return rollouts


def compared(task: EnvTask, group: Sequence[EnvRollout]) -> list[EnvRollout]:
    """The tries of a task, with the rewards of their comparison added."""
    return score_group(task, group, Session.installed(task.env_id))


def rollout_object(task: EnvTask, rollout: EnvRollout, policy: str) -> dict[str, Any]:
    """A rollout as it is saved."""
    return {
        "task": {"env_id": task.env_id, "seed": task.seed, "split": task.split, "options": dict(task.options)},
        "policy": policy,
        "messages": [message_object(message) for message in rollout.messages],
        "reward": rollout.reward,
        "reward_parts": dict(rollout.reward_parts),
        "outcome": rollout.outcome,
        "error": rollout.error,
    }


def ask(client: httpx.Client, endpoint: Endpoint, tools: Sequence[ToolSpec], messages: Sequence[Message]) -> Reply:
    """One reply. Raises `EndpointError`."""
    body: dict[str, Any] = {
        "model": endpoint.model,
        "messages": openai_messages(messages),
        "max_tokens": endpoint.max_tokens,
    }
    if endpoint.temperature is not None:
        body["temperature"] = endpoint.temperature
    if tools:
        body["tools"] = openai_tools(tools)
    headers = {"Authorization": f"Bearer {os.environ[KEY]}"} if os.environ.get(KEY) else {}
    try:
        response = client.post(f"{endpoint.url.rstrip('/')}/chat/completions", json=body, headers=headers)
        response.raise_for_status()
        return read_reply(response.json()["choices"][0]["message"])
    except httpx.HTTPStatusError as error:
        told = cut(error.response.text, 300)
        raise EndpointError(f"{endpoint.url} answers with status {error.response.status_code}: {told}") from error
    except (httpx.HTTPError, httpx.InvalidURL, *MALFORMED) as error:
        raise EndpointError(f"{endpoint.url}: {named(error)}") from error


def pass_at(num_tries: int, num_passed: int, k: int) -> float:
    """Chance that one of k tries passes: 1 - C(n - c, k) / C(n, k) (Chen et al. 2021, arXiv:2107.03374, equation 1)."""
    return 1.0 - math.comb(num_tries - num_passed, k) / math.comb(num_tries, k)


def print_summary(console: Console, env_id: str, rollouts: Sequence[Mapping[str, Any]], num_tries: int) -> None:
    """Print mean, pass@k, parts and outcomes."""
    counted = [rollout for rollout in rollouts if rollout["reward"] is not None]
    table = Table("figure", "value", title=env_id)
    if counted:
        reward_range = reward_range_of(env_id)
        by_task: dict[int, list[float]] = defaultdict(list)
        for rollout in counted:
            by_task[rollout["task"]["seed"]].append(rollout["reward"])
        table.add_row("mean reward", f"{statistics.fmean(rollout['reward'] for rollout in counted):.3f}")
        for k in sorted({1, num_tries}):
            full = [rewards for rewards in by_task.values() if len(rewards) >= k]
            num_passed = [sum(is_full_reward(reward, reward_range) for reward in rewards) for rewards in full]
            passed = [pass_at(len(rewards), num, k) for rewards, num in zip(full, num_passed, strict=True)]
            table.add_row(f"pass@{k}", f"{statistics.fmean(passed):.3f}" if passed else "none")
        for part in sorted({name for rollout in counted for name in rollout["reward_parts"]}):
            values = [rollout["reward_parts"].get(part, 0.0) for rollout in counted]
            table.add_row(f"part {part}", f"{statistics.fmean(values):.3f}")
    for outcome, number in Counter(rollout["outcome"] for rollout in rollouts).items():
        table.add_row(f"outcome {outcome}", str(number))
    console.print(table)
    failed = [rollout for rollout in rollouts if rollout["error"]]
    if failed:
        console.print(f"{len(failed)} failed, the first: {failed[0]['error']}", markup=False)
