"""Can the policy write a program that reads stdin and writes stdout? Judged by hidden inputs and outputs."""

import time
from typing import Any

import numpy as np

from envs.code.functions import LIST_ENDS, LIST_STEPS, Description, draw_step
from envs.messages import Reply
from envs.sandbox import Limits, run_program
from envs.scored import Row, scored
from envs.text_env import choose_level
from rewards.code import extract_code
from rewards.rubric import Rubric

INPUTS = ([], [3], [2, 2], [5, -1, 4], [-6, 7, 0, 7], [1, 8, -3, 6, 2], [9, 4, -2, -5, 4, 10])
LEVELS = {1: (1, 1), 2: (1, 2), 3: (2, 3)}
"""Minimum and maximum number of steps before the last, which reduces the list to one number."""
RUBRIC = Rubric({"share": 0.3, "all": 0.7})
LIMITS = Limits(cpu_s=1, wall_s=5.0)
MAX_SECONDS = 12.0
"""For all cases together: a program that waits a little in each must not exceed a step's deadline."""


def draw_row(rng: np.random.Generator, level: int = 1) -> Row:
    fewest, most = choose_level(level, LEVELS)
    while True:
        steps = [draw_step(rng, LIST_STEPS) for _ in range(int(rng.integers(fewest, most + 1)))]
        chosen = [*steps, draw_step(rng, LIST_ENDS)]
        description = Description(tuple(phrase for phrase, _ in chosen), tuple(code for _, code in chosen))
        if description.is_sound(INPUTS):
            break
    told = ", then ".join(description.phrases)
    return {
        "prompt": f"Write a Python program. It reads one line of numbers, then: {told}. It prints the result.",
        "gold": gold_program(description),
        "cases": [(" ".join(map(str, numbers)) + "\n", str(description.values(numbers)[-1])) for numbers in INPUTS],
        "key": told,
    }


def gold_program(description: Description) -> str:
    steps = "\n".join(f"x = {expression}" for expression in description.expressions)
    return f"```python\nx = [int(word) for word in input().split()]\n{steps}\nprint(x)\n```"


def share_of_cases(code: str, cases: list[Any]) -> float:
    """Share of the cases with the expected output, ignoring blanks at line ends; 0 if all of them take too long."""
    num_right = 0
    end_s = time.monotonic() + MAX_SECONDS
    for stdin, expected in cases:
        if time.monotonic() > end_s:
            return 0.0
        result = run_program(code, stdin, LIMITS)
        if result.status in ("timeout", "memory", "output_limit"):
            return 0.0  # the other cases would take as long
        num_right += result.status == "ok" and lines_of(result.stdout) == lines_of(expected)
    return num_right / len(cases)


def lines_of(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]


@scored(draw=draw_row)
def programs(reply: Reply, row: Row) -> dict[str, float]:
    """Write a Python program that reads numbers from stdin, works on them step by step and prints one number.

    The code is the reply's fenced block with the program, or the whole reply; it runs in the sandbox once per input.

    Options: `level` sets the number of steps before the last: 1 one, 2 one or two, 3 two or three.
    Reward parts: `share` 0.3 times the share of right outputs, `all` 0.7 if all are right.
    """
    share = share_of_cases(extract_code(reply.text), row["cases"])
    return RUBRIC({"share": share, "all": float(share == 1.0)})
