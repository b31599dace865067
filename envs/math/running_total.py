"""Does the policy think as long as a problem needs? The last digit of a sum, which needs a step for each digit."""

import numpy as np

from envs.messages import Reply
from envs.scored import Row, scored
from envs.text_env import EnvironmentOptionError, choose_level
from rewards.exact import text_correct, text_key

LEVELS = {1: (3, 5), 2: (4, 9), 3: (8, 14), 4: (12, 20)}
"""Minimum and maximum number of digits."""
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
"""Answers are words, so that no prompt contains its answer by chance."""


def draw_digits(rng: np.random.Generator, fewest: int, most: int) -> tuple[int, ...]:
    return tuple(int(digit) for digit in rng.integers(0, 10, size=int(rng.integers(fewest, most + 1))))


def running_totals(digits: tuple[int, ...]) -> tuple[int, ...]:
    """The last digit of the total after each digit."""
    return tuple(int(total) % 10 for total in np.cumsum(digits))


def draw_row(rng: np.random.Generator, level: int = 1, terse_share: float = 0.0) -> Row:
    digits = draw_digits(rng, *choose_level(level, LEVELS))
    totals = running_totals(digits)
    lines = [f"{before}+{digit}={after}" for before, digit, after in zip(totals, digits[1:], totals[1:], strict=False)]
    if not isinstance(terse_share, int | float) or not 0 <= terse_share <= 1:
        raise EnvironmentOptionError(f"terse_share must be from 0 to 1, got {terse_share!r}")
    if rng.random() < terse_share:
        lines = [f"{digit}{after}" for digit, after in zip(digits[1:], totals[1:], strict=True)]
    return {
        "prompt": f"Last digit of {'+'.join(map(str, digits))}?",
        "gold": WORDS[totals[-1]],
        "gold_reasoning": "\n".join(lines),
        "key": str(digits),
    }


@scored(draw=draw_row, answer_of=text_key)
def running_total(reply: Reply, row: Row) -> dict[str, float]:
    """Add up digits and give the last digit of the sum as a word: `Last digit of 7+5+9?`, answered `one`.

    The answer depends on every digit. So a policy that cannot think it through is hardly better than chance (one in
    ten), and its success depends on how long it may think. The answer is the whole text of the reply; the gold
    reasoning has one line per digit, such as `7+5=2`.

    Options: `level` is the number of digits: 1 three to five, 2 four to nine, 3 eight to fourteen (gold reasoning of at
    least 40 tokens where digits are tokens), 4 twelve to twenty. `terse_share` is the share of tasks whose gold
    reasoning has a digit and the total alone in each line, such as `52`: half of the tokens.
    Reward parts: `correct` 1 if the answer is right.
    """
    return {"correct": text_correct(reply.text, row["gold"])}
