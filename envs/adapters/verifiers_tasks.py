"""The tasksets of `verifiers` (v1) as environments, in a separate Python: its pinned versions differ from ours."""

import functools
import sys
from pathlib import Path
from typing import Any

from envs.adapters.foreign import ForeignError, in_unit_range
from envs.messages import Reply
from envs.scored import Row, scored
from envs.text_env import EnvironmentOptionError
from rewards.worker_pool import WorkerPool

DEADLINE_S = 180.0
"""Deadline of a worker's answer; the first question loads the taskset. Rollouts have their own, shorter deadlines."""
NUM_WORKERS = 2


@functools.cache
def workers(python: str) -> WorkerPool:
    hint = f"install verifiers 0.4 and the taskset for {python}, or give the option python"
    return WorkerPool(Path(__file__).with_name("verifiers_worker.py"), NUM_WORKERS, hint, python)


def ask(python: str, what: str, *arguments: Any) -> Any:
    """Raises `WorkerError` if verifiers is not installed, `ForeignError` if the taskset fails or hangs."""
    answer = workers(python).ask([what, arguments], DEADLINE_S)
    if answer is None:
        raise ForeignError(f"taskset {arguments[0]}: no {what} within {DEADLINE_S} s")
    if isinstance(answer, dict) and "error" in answer:
        raise ForeignError(f"taskset {arguments[0]}: {answer['error']}")
    return answer


def load_rows(
    taskset: str = "", config: str = "{}", python: str = sys.executable, lowest: float = 0.0, highest: float = 1.0
) -> list[Row]:
    if not taskset:
        raise EnvironmentOptionError("give the option taskset (the id of an installed taskset of verifiers)")
    told = {"taskset": taskset, "config": config, "python": python, "range": (lowest, highest)}
    rows = ask(python, "rows", taskset, config)
    return [{**row, **told, "number": number} for number, row in enumerate(rows)]


@scored(rows=load_rows)
def verifiers_tasks(reply: Reply, row: Row) -> dict[str, float]:
    """Answer the tasks of a taskset of verifiers (v1), scored by its own rewards.

    Covers tasks of one reply whose rewards need only the conversation; refuses tasks with tools, a runtime or a user.
    Judging may take longer than the default of `rollout.step_timeout_s` allows, above all the first time, when a worker
    process loads the taskset. The taskset's code runs in worker processes that can be killed, outside of the sandbox.

    Options: `taskset` is its id, `config` its configuration as JSON text, `python` the interpreter that has it
    installed; `lowest` and `highest` bound the sum of its rewards, which is scaled to [0, 1].
    Reward parts: the rewards by name, each times its weight, if the range is [0, 1]; otherwise `reward`.
    """
    if row["range"] == (0.0, 1.0):
        parts = ask_score(reply, row)
        in_unit_range(sum(parts.values()), 0.0, 1.0)
        return parts
    return {"reward": in_unit_range(sum(ask_score(reply, row).values()), *row["range"])}


def ask_score(reply: Reply, row: Row) -> dict[str, float]:
    arguments = row["taskset"], row["config"], row["number"], row["key"], reply.text, reply.reasoning
    return ask(row["python"], "score", *arguments)
