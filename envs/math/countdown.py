"""Can the policy search? Combine given numbers into a target, each used at most once."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from envs.messages import Reply
from envs.scored import Row, scored
from envs.text_env import choose_level
from rewards.expression import read_expression


@dataclass(frozen=True, slots=True)
class Level:
    num_numbers: int
    largest_number: int
    operators: str


LEVELS = {1: Level(2, 9, "+-"), 2: Level(3, 12, "+-*"), 3: Level(4, 25, "+-*"), 4: Level(6, 100, "+-*/")}
MAX_TARGET = 999


def combined(rng: np.random.Generator, left: int, right: int, operators: str) -> tuple[str, int]:
    """An operator that keeps the result a whole number in 1..`MAX_TARGET` (`+` if none does), and that result."""
    results = {"+": left + right, "-": left - right, "*": left * right, "/": left // right}
    fits = [sign for sign in operators if 0 < results[sign] <= MAX_TARGET and (sign != "/" or left % right == 0)]
    sign = str(rng.choice(fits or ["+"]))
    return sign, results[sign]


def draw_solution(rng: np.random.Generator, level: Level) -> tuple[list[int], int, str]:
    """Numbers, target, and an expression of all the numbers that equals the target."""
    numbers = [int(number) for number in rng.integers(1, level.largest_number + 1, level.num_numbers)]
    target, expression = numbers[0], str(numbers[0])
    for place, number in enumerate(numbers[1:], start=1):
        sign, target = combined(rng, target, number, level.operators)
        bracketed = f"({expression})" if place > 1 and sign in "*/" else expression
        expression = f"{bracketed}{sign}{number}"
    return numbers, target, expression


def draw_row(rng: np.random.Generator, level: int = 1) -> Row:
    numbers, target, expression = draw_solution(rng, choose_level(level, LEVELS))
    while target in numbers:  # the target would be its own answer
        numbers, target, expression = draw_solution(rng, choose_level(level, LEVELS))
    shown = sorted(numbers)
    prompt = (
        f"Make {target} from {', '.join(map(str, shown))} with + - * / and brackets, using each number at most once."
        " Write the expression on the last line."
    )
    return {"prompt": prompt, "gold": expression, "numbers": shown, "target": target}


@scored(draw=draw_row)
def countdown(reply: Reply, row: Row) -> dict[str, float]:
    """Combine numbers into a target, as in the television game: `Make 13 from 4, 9 ...`, answered `9+4`.

    The answer is the reply's last line; text after an equals sign is ignored. Any solution counts.

    Options: `level` 1 (two numbers to 9, sums and differences), 2 (three to 12, products), 3 (four to 25), 4 (six to
    100, quotients).
    Reward parts: `correct` 1 if the expression equals the target and uses only the given numbers.
    """
    lines = reply.text.strip().splitlines()
    read = read_expression(lines[-1].partition("=")[0]) if lines else None
    is_right = read is not None and read[0] == row["target"] and not Counter(read[1]) - Counter(row["numbers"])
    return {"correct": float(is_right)}
