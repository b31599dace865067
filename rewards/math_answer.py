"""Does a worked answer end in the right value? Numbers are compared exactly; the rest is read as LaTeX.

`rewards.final_answer` defines which part of a reply is its answer, and which of several boxes counts. Then, in order:

- Numbers (`rewards.numbers`) are compared as fractions, without tolerance.
- Units (`rewards.units`) may be missing in the answer or in the expected value; two different units are wrong.
- Words, conditions and everything else that is not mathematics are compared as text, without case. So is an answer that
  the parser cannot read as a whole: a part that happens to be readable never decides.
- Everything else goes to a LaTeX parser and sympy, in worker processes (`rewards/math_worker.py` defines what is equal
  there). Towers of powers and factorials too large to compare are wrong at once. sympy can still hang: a worker gives
  up after two seconds of its own time, and is killed after `deadline_s`. Each of these scores 0 and delays the
  answers that wait behind it by no more than that.
"""

import os
import re
from fractions import Fraction
from pathlib import Path

from rewards.final_answer import final_answer, value_runs
from rewards.latex import plain_latex
from rewards.numbers import Quantity, named_value, parse_quantity
from rewards.units import split_unit
from rewards.worker_pool import WorkerPool

DEADLINE_S = 5.0
"""Counted from when a worker takes the answer."""
MAX_ANSWER_CHARACTERS = 400
NUM_WORKERS = min(8, max(2, (os.cpu_count() or 2) // 2))
WORKERS = WorkerPool(
    Path(__file__).with_name("math_worker.py"),
    NUM_WORKERS,
    "is math-verify installed? Try: python -c 'import math_verify'",
)
LATEX = re.compile(r"[\\=]")
MATHEMATICS = re.compile(r"[\\^*/+=(){}<>|!%_×÷·√∞≤≥±°]|\d[^\W\d]|\d\s*[a-z]?\s*-\s*\d")  # noqa: RUF001
CONDITION = re.compile(r"\b(?:if|when|unless|otherwise|not|mod)\b", re.IGNORECASE)
BASE = re.compile(r"(-?[0-9A-Fa-f]+) ?_ ?\{? ?(\d{1,2}) ?\}?")
STYLED_UNIT = re.compile(r"[\d})] *(?:\\[, ])* *\\(?:text|mathrm|mbox)")
DEGREES = re.compile(r"(\d+(?:\.\d+)?) ?\^ ?\{? ?\\circ ?\}?")
EXPONENT = re.compile(r"\A(-?[\d.]+)[eE]([-+]?\d+)\Z")
TEXT = re.compile(r"\\text\{([^{}]*)\}")
NO_MATHEMATICS = re.compile(
    r"\\text\{|(?<![\\A-Za-z])[A-Za-z]{4,}(?![A-Za-z}])|\d ?_|'|\d \d|\\[bp]?mod\b|\\[lc]?dots|[?\"#@]|\.\.|\\\Z"
    r"|\^ ?\{? ?(?:T\b|\\top)"
)
"""What the parser would misread: words as products, a base or a prime as nothing, `1 2` as a sum."""


def answer_correct(text: str, expected: int | Fraction | str, deadline_s: float = DEADLINE_S) -> float:
    """1.0 if the final answer of `text` equals `expected`, else 0.0. An expected text is mathematics (LaTeX).

    An answer that cannot be judged within `deadline_s` after a worker takes it is wrong. Raises `WorkerError`.
    """
    answer = final_answer(text)
    if len(answer) > MAX_ANSWER_CHARACTERS:
        return 0.0
    wanted = _plain_quantity(expected) if isinstance(expected, str) else Quantity(Fraction(expected), False)
    if wanted is None:
        decided = expression_decides(answer, str(expected))
    elif (decided := number_decides(answer, wanted.value)) is None:
        decided = mathematics_decides(answer, wanted.value)
    if decided is not None:
        return float(decided)
    given, gold = _values(answer, str(expected))
    return float(verify_symbolically(given, gold, deadline_s))


def number_decides(answer: str, expected: Fraction) -> bool | None:
    """Whether the answer is right, for the easy cases: a plain number, a number with words around it, or no number.

    None if the answer is mathematics that must be parsed.
    """
    if len(answer) > MAX_ANSWER_CHARACTERS:
        return False
    if LATEX.search(answer):
        return None
    if given := parse_quantity(answer):
        return given.equals(Quantity(expected, False))
    return None if MATHEMATICS.search(answer) else words_decide(answer, expected)


def words_decide(answer: str, expected: Fraction) -> bool:
    """Whether an answer in words has exactly one number, which is the expected one, and no condition."""
    runs = value_runs(answer)
    given = parse_quantity(runs[0]) if len(runs) == 1 and not CONDITION.search(answer) else None
    return given is not None and given.equals(Quantity(expected, False))


def mathematics_decides(answer: str, expected: Fraction) -> bool | None:
    """Whether mathematics is the expected number, for a number in LaTeX, with a name or unit, or in a base; else None.

    False if the parser would misread the answer.
    """
    plain = plain_latex(answer)
    value = named_value(plain)
    for written in (plain, value, split_unit(value, letters=True)[0]):
        if given := parse_quantity(written):
            return given.equals(Quantity(expected, False))
    if number := _number_in_base(value):
        return number[2] == expected
    words = TEXT.sub(r"\1", plain)
    if not MATHEMATICS.search(words):
        return words_decide(words, expected)
    return False if NO_MATHEMATICS.search(named_value(split_unit(plain)[0])) else None


def expression_decides(answer: str, expected: str) -> bool | None:
    """Whether the answer is right, for the easy cases: the same text, another unit, words, or too long; else None."""
    if not answer.strip() or len(answer) > MAX_ANSWER_CHARACTERS:
        return False
    given, gold = plain_latex(answer), plain_latex(expected)
    if text_key(given) == text_key(gold):
        return True
    gold_value, gold_unit = split_unit(gold, expected, letters=bool(STYLED_UNIT.search(expected)))
    given_value, given_unit = split_unit(given, answer, letters=bool(gold_unit))
    if gold_unit and given_unit and gold_unit != given_unit:
        return False
    if "=" not in gold_value:
        given_value = named_value(given_value)
    given_number, gold_number = parse_quantity(given_value), parse_quantity(gold_value)
    if given_number and gold_number:
        return given_number.equals(gold_number) and not (gold_unit and given_number.percent)
    if (wanted := _number_in_base(gold_value)) is not None:
        return wanted[:2] == (_number_in_base(given_value) or (given_value.lower(), wanted[1]))[:2]
    if NO_MATHEMATICS.search(given_value) or NO_MATHEMATICS.search(gold_value):
        return text_key(given_value) == text_key(gold_value)
    return None


def text_key(plain: str) -> str:
    """The same key for texts in plain LaTeX that differ only in blanks, braces and the case of words."""
    plain = TEXT.sub(lambda found: found[1].casefold(), re.sub(r"(?<=\d), (?=\d{3}(?!\d))", ";", plain))
    plain = re.sub(r"(?<![\\A-Za-z])[A-Za-z]{2,}", lambda word: word[0].casefold(), plain)
    plain = re.sub(r"[ {}]|(?<=[a-z])\.\Z", "", plain.replace("\\{", "<(").replace("\\}", ")>"))
    return re.sub(r"\A\(([A-Za-z])\)\Z", r"\1", plain)


def _plain_quantity(expected: str) -> Quantity | None:
    """The expected number, if it has neither unit nor percent sign."""
    quantity = None if split_unit("", expected)[1] else parse_quantity(expected)
    return None if quantity is None or quantity.percent else quantity


def _values(answer: str, expected: str) -> tuple[str, str]:
    """Both sides in the form that a worker reads: plain LaTeX without units, percentages as hundredths."""
    gold = split_unit(plain_latex(expected), letters=bool(STYLED_UNIT.search(expected)))
    given = split_unit(plain_latex(answer), letters=bool(gold[1]) or parse_quantity(gold[0]) is not None)
    sides = [DEGREES.sub(r"(\1\\pi/180)", EXPONENT.sub(r"\1 \\cdot 10^{\2}", side)) for side in (given[0], gold[0])]
    if all(side.endswith("%") for side in sides):
        return sides[0].removesuffix("%").removesuffix("\\"), sides[1].removesuffix("%").removesuffix("\\")
    given_side, gold_side = (re.sub(r"\A(.*?) ?\\?%\Z", r"(\1)/100", side) for side in sides)
    return given_side, gold_side


def _number_in_base(plain: str) -> tuple[str, int, Fraction] | None:
    """Digits, base and value of a number such as `1010_2`; None for anything else."""
    found = BASE.fullmatch(plain)
    try:
        return (found[1].lower(), int(found[2]), Fraction(int(found[1], int(found[2])))) if found else None
    except ValueError:  # no such base, or no such digit in it
        return None


def verify_symbolically(answer: str, expected: str, deadline_s: float = DEADLINE_S) -> bool:
    """Whether a worker process finds both equal; False if it takes longer than `deadline_s`. Raises `WorkerError`."""
    return bool(WORKERS.ask([answer, expected], deadline_s))
