"""Does a worked answer end in the right value? Numbers are compared exactly; only the rest goes to math-verify.

math-verify (https://github.com/huggingface/Math-Verify) reads LaTeX and algebra. It bounds its own time with SIGALRM,
which fails outside of a process's main thread, and sympy can hang all the same; so it runs in worker processes that are
killed when an answer takes too long.
"""

import re
from fractions import Fraction
from pathlib import Path

from rewards.numbers import NUMBER, final_answer, parse_number
from rewards.worker_pool import WorkerPool

DEADLINE_S = 5.0
MAX_ANSWER_CHARACTERS = 400
WORKERS = WorkerPool(
    Path(__file__).with_name("math_worker.py"), 2, "is math-verify installed? Try: python -c 'import math_verify'"
)
MATHEMATICS = re.compile(r"[\\^*/+=(){}<>|!%]|\d\s*[a-z]?\s*-\s*\d")


def answer_correct(text: str, expected: int | Fraction | str, deadline_s: float = DEADLINE_S) -> float:
    """1.0 when the final answer of `text` equals `expected`, else 0.0. An expected text is mathematics (LaTeX).

    An answer that math-verify cannot judge within `deadline_s` is wrong. Raises `WorkerError`.
    """
    answer = final_answer(text)
    number = parse_number(expected) if isinstance(expected, str) else Fraction(expected)
    decided = expression_decides(answer, str(expected)) if number is None else number_decides(answer, number)
    if decided is not None:
        return float(decided)
    return float(verify_symbolically(answer, str(expected), deadline_s))


def number_decides(answer: str, expected: Fraction) -> bool | None:
    """Whether the answer is right where that is plain: it is a number, a number with words around it, or has none.

    None where it is mathematics that has to be read.
    """
    if (number := parse_number(answer)) is not None:
        return number == expected
    if MATHEMATICS.search(answer):
        return None if len(answer) <= MAX_ANSWER_CHARACTERS else False
    numbers = NUMBER.findall(answer)
    return len(numbers) == 1 and parse_number(numbers[0]) == expected


def expression_decides(answer: str, expected: str) -> bool | None:
    """Whether the answer is right where that is plain: it is the expected text, empty, or too long; else None."""
    if answer.replace(" ", "") == expected.replace(" ", ""):
        return True
    return None if 0 < len(answer) <= MAX_ANSWER_CHARACTERS else False


def verify_symbolically(answer: str, expected: str, deadline_s: float = DEADLINE_S) -> bool:
    """math-verify's verdict in a worker process; False when it takes longer than `deadline_s`. Raises `WorkerError`."""
    return bool(WORKERS.ask([answer, expected], deadline_s))
