"""`python -m envs eval`: how does a model behind an OpenAI-compatible endpoint do in an environment?"""

import json
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

from envs.event_loop import settle
from envs.messages import Message, Reply, ToolCall
from envs.registry import make
from envs.rollout_file import message_object
from envs.text_env import TextEnv

KEY = "OPENAI_API_KEY"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where replies come from, and how they are sampled."""

    url: str
    model: str
    temperature: float
    max_tokens: int
    timeout_s: float
    at_once: int


class EndpointError(RuntimeError):
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
    """Play `num_tasks` tasks, each so many times; print and give the rollouts, also written to `out`."""
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task(f"{env_id}, {endpoint.model}", total=num_tasks * num_tries)

        def one(seed: int) -> dict[str, Any]:
            task = {"env_id": env_id, "seed": seed, "split": split, "options": options}
            rollout = play(client, endpoint, task)
            progress.advance(bar)
            return rollout

        seeds = [seed for seed in range(num_tasks) for _ in range(num_tries)]
        with httpx.Client(timeout=endpoint.timeout_s) as client, ThreadPoolExecutor(endpoint.at_once) as pool:
            rollouts = list(pool.map(one, seeds))
    if out is not None:
        out.write_text("".join(json.dumps(rollout) + "\n" for rollout in rollouts))
    print_summary(console, env_id, rollouts, num_tries)
    return rollouts


def play(client: httpx.Client, endpoint: Endpoint, task: Mapping[str, Any]) -> dict[str, Any]:
    """One episode. Failures of the endpoint and of the environment are told apart, and are no reward."""
    messages: list[Message] = []
    env: TextEnv | None = None
    reward, parts, outcome, error = 0.0, {}, "truncated", ""
    try:
        env = make(task["env_id"])
        opening, _ = settle(env.reset(seed=task["seed"], options={**task["options"], "split": task["split"]}))
        messages += opening
        for _ in range(env.max_turns):
            reply = ask(client, endpoint, env, messages)
            messages.append(reply.as_message())
            following, earned, terminated, truncated, info = settle(env.step(reply))
            messages += following
            reward += earned
            parts |= info.get("reward_parts", {})
            if terminated or truncated:
                outcome = "truncated" if truncated else "ok"
                break
    except EndpointError as failure:
        outcome, error = "infra_error", str(failure)
    except Exception as failure:
        outcome, error = "env_error", f"{type(failure).__name__}: {failure}"
    finally:
        if env is not None:
            settle(env.close())
    counts = outcome in ("ok", "truncated")
    return {
        "task": dict(task),
        "messages": [message_object(message) for message in messages],
        "reward": reward if counts else None,
        "reward_parts": parts if counts else {},
        "outcome": outcome,
        "error": error,
    }


def ask(client: httpx.Client, endpoint: Endpoint, env: TextEnv, messages: Sequence[Message]) -> Reply:
    """One reply. Raises `EndpointError`."""
    body: dict[str, Any] = {
        "model": endpoint.model,
        "messages": openai_messages(messages),
        "temperature": endpoint.temperature,
        "max_tokens": endpoint.max_tokens,
    }
    if env.tools:
        body["tools"] = [
            {"type": "function", "function": {"name": tool.name, "description": tool.description,
                                              "parameters": dict(tool.parameters)}}
            for tool in env.tools
        ]  # fmt: skip
    headers = {"Authorization": f"Bearer {os.environ[KEY]}"} if os.environ.get(KEY) else {}
    try:
        response = client.post(f"{endpoint.url.rstrip('/')}/chat/completions", json=body, headers=headers)
        response.raise_for_status()
        return read_reply(response.json()["choices"][0]["message"])
    except (httpx.HTTPError, LookupError, ValueError, TypeError) as error:
        raise EndpointError(f"{endpoint.url}: {type(error).__name__}: {error}") from error


def openai_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The conversation as chat completions have it; each tool message answers the next call that has no answer yet."""
    told: list[dict[str, Any]] = []
    waiting: list[str] = []
    for message in messages:
        entry: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.role == "assistant" and message.tool_calls:
            waiting = [f"call_{len(told)}_{place}" for place in range(len(message.tool_calls))]
            entry["tool_calls"] = [
                {"id": name, "type": "function",
                 "function": {"name": call.name, "arguments": json.dumps(dict(call.arguments))}}
                for name, call in zip(waiting, message.tool_calls, strict=True)
            ]  # fmt: skip
        elif message.role == "tool":
            entry["tool_call_id"] = waiting.pop(0) if waiting else "call_unknown"
        told.append(entry)
    return told


def read_reply(message: Mapping[str, Any]) -> Reply:
    """The reply in a chat completion; arguments that are no JSON object go to the tool as they are."""
    calls = []
    for call in message.get("tool_calls") or ():
        try:
            arguments = json.loads(call["function"]["arguments"] or "{}")
        except ValueError:
            arguments = None
        told = arguments if isinstance(arguments, dict) else {"arguments": call["function"]["arguments"]}
        calls.append(ToolCall(call["function"]["name"], told))
    reasoning = message.get("reasoning_content") or message.get("reasoning") or ""
    return Reply(message.get("content") or "", str(reasoning), tuple(calls))


def pass_at(num_tries: int, num_passed: int, k: int) -> float:
    """Chance that one of k tries passes: 1 - C(n - c, k) / C(n, k) (Chen et al. 2021, arXiv:2107.03374, equation 1)."""
    return 1.0 - math.comb(num_tries - num_passed, k) / math.comb(num_tries, k)


def print_summary(console: Console, env_id: str, rollouts: Sequence[Mapping[str, Any]], num_tries: int) -> None:
    """Mean, pass@k, parts and outcomes."""
    counted = [rollout for rollout in rollouts if rollout["reward"] is not None]
    table = Table("figure", "value", title=env_id)
    if counted:
        top = make(env_id).reward_range[1]
        by_task: dict[int, list[float]] = defaultdict(list)
        for rollout in counted:
            by_task[rollout["task"]["seed"]].append(rollout["reward"])
        table.add_row("mean reward", f"{statistics.fmean(rollout['reward'] for rollout in counted):.3f}")
        for k in sorted({1, num_tries}):
            full = [rewards for rewards in by_task.values() if len(rewards) >= k]
            passed = [pass_at(len(rewards), sum(reward >= top - 1e-9 for reward in rewards), k) for rewards in full]
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
