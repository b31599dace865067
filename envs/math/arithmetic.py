"""Can the policy compute a short sum? Additions and subtractions of small numbers, at the last level with products."""

from dataclasses import dataclass

import numpy as np

from envs.messages import Reply
from envs.scored import Row, scored
from envs.text_env import choose_level
from rewards.numbers import answered_number, number_correct


@dataclass(frozen=True, slots=True)
class Level:
    """How hard a sum is. Every intermediate result lies in 0..`largest_result`."""

    num_steps: tuple[int, int]
    largest_operand: int
    largest_result: int
    operators: str


LEVELS = {
    1: Level((1, 3), 9, 18, "+-"),
    2: Level((3, 5), 9, 20, "+-"),
    3: Level((3, 4), 20, 50, "+-"),
    4: Level((2, 3), 12, 200, "+-*"),
}


@dataclass(frozen=True, slots=True)
class Sum:
    """`start`, then operators and operands in order, read from left to right."""

    start: int
    steps: tuple[tuple[str, int], ...]

    @property
    def text(self) -> str:
        """The sum as text, with brackets where left to right is not the usual order."""
        text = str(self.start)
        for place, (operator, operand) in enumerate(self.steps):
            if operator == "*" and place:
                text = f"({text})"
            text = f"{text}{operator}{operand}"
        return text

    @property
    def results(self) -> tuple[int, ...]:
        """The value after each step."""
        values = [self.start]
        for operator, operand in self.steps:
            values.append(apply(operator, values[-1], operand))
        return tuple(values[1:])

    @property
    def worked(self) -> str:
        """One line per step, such as `7+5=12`."""
        before = (self.start, *self.results)
        return "\n".join(
            f"{value}{operator}{operand}={result}"
            for value, (operator, operand), result in zip(before, self.steps, self.results, strict=False)
        )


def apply(operator: str, left: int, right: int) -> int:
    return {"+": left + right, "-": left - right, "*": left * right}[operator]


def draw_sum(rng: np.random.Generator, level: Level) -> Sum:
    """A sum of this level; operands are at least 1, and every result is in 0..`largest_result`."""
    start = int(rng.integers(1, level.largest_operand + 1))
    value, steps = start, []
    for _ in range(int(rng.integers(level.num_steps[0], level.num_steps[1] + 1))):
        choices = [
            (operator, operand)
            for operator in level.operators
            for operand in range(1, level.largest_operand + 1)
            if 0 <= apply(operator, value, operand) <= level.largest_result
        ]
        operator = str(rng.choice(sorted({operator for operator, _ in choices})))
        operand = int(rng.choice([operand for name, operand in choices if name == operator]))
        steps.append((operator, operand))
        value = apply(operator, value, operand)
    return Sum(start, tuple(steps))


def draw_row(rng: np.random.Generator, level: int = 1) -> Row:
    problem = draw_sum(rng, choose_level(level, LEVELS))
    gold = problem.results[-1]
    return {"prompt": f"{problem.text}=?", "gold": gold, "gold_reasoning": problem.worked, "key": problem.text}


@scored(draw=draw_row, answer_of=answered_number)
def arithmetic(reply: Reply, row: Row) -> dict[str, float]:
    """Compute a sum from left to right: `7+5-3=?`, answered `9`.

    The answer is the last number of the reply's text; the gold reasoning has one line per step.

    Options: `level` 1 (one to three steps, numbers to 9, results to 18), 2 (three to five steps, results to 20), 3
    (three or four steps, numbers to 20, results to 50), 4 (products too, results to 200).
    Reward parts: `correct` 1 if the answer is right.
    """
    return {"correct": number_correct(reply.text, row["gold"])}
