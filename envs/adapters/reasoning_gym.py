"""The generators of reasoning-gym as environments. Needs the package `reasoning-gym` (`make adapters`)."""

import ast
import functools
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from envs.messages import Reply
from envs.scored import Row, scored
from envs.text_env import EnvironmentOptionError
from rewards.tagged import tagged_answer
from rewards.worker_pool import WorkerPool

NUM_ENTRIES = 10_000  # as in the worker
MAX_ANSWER_CHARACTERS = 4_000
DEADLINE_S = 15.0
HINT = "Give the answer between <answer> and </answer>."
WORKERS = WorkerPool(
    Path(__file__).with_name("reasoning_gym_worker.py"), 2, "try: make adapters, or pip install reasoning-gym==0.1.25"
)
EVALUATING = {"string_insertion", "spiral_matrix", "binary_matrix", "n_queens"}
"""Tasks whose scorers evaluate the answer in a scope with the right answer: only literals are passed to them."""
FUNCTIONS = frozenset(
    {"sin", "cos", "tan", "sec", "csc", "cot", "asin", "acos", "atan", "sinh", "cosh", "tanh", "exp", "log", "ln"}
    | {"sqrt", "pi", "Abs"}
)
PARSED: Mapping[str, Collection[str]] = {
    **dict.fromkeys(("countdown", "puzzle24"), ()),
    **dict.fromkeys(("simple_integration", "intermediate_integration", "polynomial_multiplication"), FUNCTIONS),
}
"""Tasks whose scorers give the answer to sympy's parser, which evaluates it as Python with all of sympy: the names of
several letters that it may contain. `expand(QUESTION)` would be right, and `exec(...)` would take over the scorer.
"""
FORMULA = re.compile(r"(?:[\s+\-*/()^]|\d+(?:\.\d*)?+|\.\d+|[A-Za-z]++)*+")
"""Numbers, names, operators and brackets; no attributes, strings, commas or indices."""
NAME = re.compile("[A-Za-z]+")
CAPITALS = re.compile("[A-Z]*")
"""Answers of `string_insertion`; no scorer uses such a name."""


class ReasoningGymError(RuntimeError):
    """A generator or the jail of its scorer failed. The policy never causes this."""


def ask(what: str, *arguments: Any) -> Any:
    """Raises `WorkerError` if reasoning-gym is not installed, `ReasoningGymError` if it fails."""
    answer = WORKERS.ask([what, arguments], DEADLINE_S)
    if isinstance(answer, dict) and "error" in answer:
        raise ReasoningGymError(f"reasoning-gym, {what} {arguments[0]}: {answer['error']}")
    return answer


@functools.cache
def tasks() -> tuple[str, ...]:
    """The names of all generators."""
    return tuple(name for name in ask("tasks") if name != "composite")


def draw_row(rng: np.random.Generator, task: str | Sequence[str] = "chain_sum", graded: bool = False) -> Row:
    chosen = task if isinstance(task, str) else str(rng.choice(list(task)))
    if chosen not in tasks():
        raise EnvironmentOptionError(f"reasoning-gym has no task {chosen!r}; tasks: {', '.join(tasks())}")
    number = int(rng.integers(NUM_ENTRIES))
    entry = ask("entry", chosen, number)
    if entry is None:
        raise ReasoningGymError(f"reasoning-gym, task {chosen}: no entry {number} within {DEADLINE_S} s")
    row = {"prompt": f"{entry['question']}\n\n{HINT}", "task": chosen, "number": number, "graded": graded}
    return row if entry["answer"] is None else {**row, "gold": f"<answer>{entry['answer']}</answer>"}


def is_harmless(task: str, answer: str) -> bool:
    """Whether the answer may be handed to the task's scorer."""
    if len(answer) > MAX_ANSWER_CHARACTERS or "__" in answer:
        return False
    if task in PARSED:
        return _is_formula(answer, PARSED[task])
    if task not in EVALUATING or CAPITALS.fullmatch(answer):
        return True
    try:
        ast.literal_eval(answer)
    except SyntaxError:
        return True  # nothing that can be evaluated
    except (ValueError, MemoryError, RecursionError):
        return False
    return True


def _is_formula(answer: str, functions: Collection[str]) -> bool:
    """Numbers alone, or, with functions, names too: of these functions or of one letter."""
    names = NAME.findall(answer)
    is_known = all(name in functions or (len(name) == 1 and functions) for name in names)
    return bool(is_known and FORMULA.fullmatch(answer))


@scored(draw=draw_row)
def reasoning_gym(reply: Reply, row: Row) -> dict[str, float]:
    """Solve a task of one of reasoning-gym's generators, judged by its own scorer (Apache-2.0).

    The answer is the text between `<answer>` and `</answer>`. All other text is ignored, since the scorers give credit
    for texts that merely contain the answer. Scorers run in a sandboxed process, since some evaluate their input.

    Each generator has 10,000 entries, of which a fifth is held out.

    Options: `task` is the name of a generator, or a list of names to draw from; `graded` also pays the scorer's partial
    credit, while otherwise only full scores count.
    Reward parts: one named after the task.
    """
    answer = tagged_answer(reply.text)
    if answer is None or not is_harmless(row["task"], answer):
        return {row["task"]: 0.0}
    score = ask("score", row["task"], row["number"], answer)
    if score is None:  # the scorer's own CPU limit is shorter
        raise ReasoningGymError(f"reasoning-gym, task {row['task']}: no score within {DEADLINE_S} s")
    return {row["task"]: min(1.0, max(0.0, score)) if row["graded"] else float(score >= 1.0)}
