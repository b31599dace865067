"""Scorers take time in proportion to the length of a reply, whatever is in it: ten times the text, ten times the time.

A scorer holds the interpreter, and no deadline can end it. Add one row to `SCORERS` for each new one.
"""

import time
from collections.abc import Callable
from fractions import Fraction

import pytest

from rewards.calls import judge_calls
from rewards.choice import choice_correct
from rewards.code import extract_code, same_value, share_correct
from rewards.exact import text_correct
from rewards.expression import read_expression
from rewards.final_answer import final_answer
from rewards.math_answer import expression_decides, number_decides
from rewards.numbers import number_correct, parse_number
from rewards.state import state_reached
from rewards.tagged import tagged_answer

pytestmark = pytest.mark.slow
SHORT, LONG = 10_000, 100_000
MAX_GROWTH = 40.0
"""A scorer in proportion grows by 10, a quadratic one by 100."""
SHORTEST_S = 1e-4
"""Below this, times are noise."""

SCORERS: dict[str, Callable[[str], object]] = {
    "number_correct": lambda text: number_correct(text, 1),
    "parse_number": parse_number,
    "final_answer": final_answer,
    "number_decides": lambda text: number_decides(text, Fraction(1)),
    "expression_decides": lambda text: expression_decides(text, "x+1"),
    "choice_correct": lambda text: choice_correct(text, "B"),
    "extract_code": extract_code,
    "same_value": lambda text: same_value(list(text), list(text)),
    "share_correct": lambda text: share_correct(list(text), list(text)),
    "text_correct": lambda text: text_correct(text, "one"),
    "read_expression": read_expression,
    "tagged_answer": tagged_answer,
    "state_reached": lambda text: state_reached({"a": text}, {"a": text + "b"}),
    "judge_calls of one call": lambda text: judge_calls([("f", {"x": text})], [("f", {"x": [text + "b"]})]),
    "judge_calls of equal calls": lambda text: judge_calls([("f", {"x": 1})] * (len(text) // 100), WANTED[len(text)]),
}
WANTED = {size: [("f", {"x": [1, 2]})] * (size // 100) for size in (SHORT, LONG)}

PIECES = {
    "digits": "1",
    "digit groups": "1,234,",
    "signs": "!",
    "letters": "a",
    "capitals": "B ",
    "blanks": " ",
    "tabs and lines": "\t\n",
    "lines": "\n",
    "commas": ",",
    "numbers": "1 + 2, ",
    "powers": "2^{",
    "fractions": "\\frac{1}{",
    "round brackets": "(",
    "square brackets": "[",
    "braces": "{",
    "closing brackets": ")]}",
    "backslashes": "\\",
    "dollars": "$1 ",
    "mathematics": "\\(1 ",
    "display": "\\[",
    "boxes": "\\boxed{",
    "closed boxes": "\\boxed{1},",
    "text": "\\text{ ",
    "backticks": "`",
    "fences": "```\n",
    "unclosed fences": "```python\nx = 1\n",
    "tildes": "~~~\n",
    "tags": "<answer>",
    "closing tags": "</answer>",
    "markers": "#### \n",
    "hashes": "#",
    "stars": "**",
    "bullets": "- 1\n",
    "answers": "Answer: A, ",
    "answer and blanks": "answer          ",
    "options": "B) 1\n",
    "minus": "-",
    "exponents": "1e1",
    "points": "1.",
    "percent": "1 percent ",
    "words between": "1 and 2 of ",
    "definitions": "def f\n",
}


@pytest.mark.parametrize("scorer", SCORERS)
def test_a_scorer_grows_with_its_input_and_no_faster(scorer: str) -> None:
    for name, piece in PIECES.items():
        short, long = ((piece * size)[: size - 2] + "x1" for size in (SHORT, LONG))
        assert grows_in_proportion(SCORERS[scorer], short, long), name


def grows_in_proportion(scorer: Callable[[str], object], short: str, long: str) -> bool:
    """Whether the best of several times does; the first ones may be disturbed by what else uses the caches."""
    for num_tries in (1, 3, 9):
        short_s, long_s = best_s(scorer, short, num_tries), best_s(scorer, long, num_tries)
        if long_s < MAX_GROWTH * max(short_s, SHORTEST_S):
            return True
    return False


def best_s(scorer: Callable[[str], object], text: str, num_tries: int) -> float:
    times: list[float] = []
    for _ in range(num_tries):
        start_s = time.thread_time()  # this thread's own work, whatever else the machine does
        scorer(text)
        times.append(time.thread_time() - start_s)
    return min(times)
