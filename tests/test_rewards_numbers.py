"""Reading numbers and judging worked answers, against answers computed by hand."""

import threading
from fractions import Fraction

import pytest

from rewards.expression import read_expression
from rewards.final_answer import final_answer, last_boxed
from rewards.math_answer import answer_correct, number_decides, verify_symbolically
from rewards.numbers import number_correct, parse_number
from rewards.worker_pool import WorkerError, WorkerPool


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("7", Fraction(7)),
        (" -3 ", Fraction(-3)),
        ("\u22123", Fraction(-3)),
        ("1,200", Fraction(1200)),
        ("$4.50", Fraction(9, 2)),
        ("3/4", Fraction(3, 4)),
        ("9.", Fraction(9)),
        ("", None),
        ("nine", None),
        ("3/0", None),
        ("1e9", Fraction(10**9)),
        ("1e999", None),
        ("2 3", None),
        ("1.5/2", None),
        ("9" * 41, None),
    ],
)
def test_numbers_are_read_exactly(text: str, number: Fraction | None) -> None:
    assert parse_number(text) == number


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("3 + 4 = 7", "7"),
        ("it is 12.", "12"),
        ("so 5\n#### 12", "12"),
        ("#### 1\n#### 2\nnot 3", "2"),
        ("\\boxed{5} and 6", "5"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{5", "5"),
        ("x1 is 4", "4"),
        ("none at all", ""),
    ],
)
def test_the_final_answer_is_the_marked_one_or_else_the_last_number(text: str, answer: str) -> None:
    assert final_answer(text) == answer


def test_boxes_within_boxes_are_matched() -> None:
    assert last_boxed("\\boxed{1} \\boxed{a{b}c} d") == "a{b}c"
    assert last_boxed("no box") is None


def test_a_number_is_right_or_wrong_and_nothing_between() -> None:
    assert number_correct("7 + 5 = 12", 12) == 1.0
    assert number_correct("12.0", 12) == 1.0
    assert number_correct("13", 12) == 0.0
    assert number_correct("", 0) == 0.0


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("12", True),
        ("13", False),
        ("12 dollars", True),
        ("12 or 13", False),
        ("", False),
        ("twelve", False),
        ("3*4", None),
        ("\\frac{24}{2}", None),
        ("x=12", None),
        ("x=" + "1" * 500, False),
    ],
)
def test_only_mathematics_is_left_to_math_verify(answer: str, verdict: bool | None) -> None:
    assert number_decides(answer, Fraction(12)) is verdict


def test_math_verify_judges_latex_and_algebra() -> None:
    assert answer_correct("thus \\boxed{\\frac{24}{2}}", 12) == 1.0
    assert answer_correct("#### 3*4", 12) == 1.0
    assert answer_correct("#### 3*5", 12) == 0.0
    assert answer_correct("\\boxed{\\frac{1}{2}}", Fraction(1, 2)) == 1.0


def test_math_verify_works_outside_of_the_main_thread() -> None:
    verdicts: list[float] = []
    thread = threading.Thread(target=lambda: verdicts.append(answer_correct("#### 3*4", 12)))
    thread.start()
    thread.join()
    assert verdicts == [1.0]


def test_an_answer_that_takes_too_long_is_wrong_and_blocks_nothing_after_it() -> None:
    hostile = "9^" * 150 + "9"
    assert verify_symbolically(hostile, "12", deadline_s=0.5) is False
    assert verify_symbolically(hostile, "12", deadline_s=0.5) is False
    assert answer_correct("#### 3*4", 12, deadline_s=60.0) == 1.0


def test_a_worker_that_cannot_start_is_an_error_and_no_verdict(tmp_path) -> None:
    broken = tmp_path / "broken_worker.py"
    broken.write_text("import no_such_module\n")
    pool = WorkerPool(broken, 1, "is it installed?")
    for _ in range(2):
        with pytest.raises(WorkerError, match=r"broken_worker.py did not start; is it installed\?"):
            pool.ask("3*4", 1.0)


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("(25-19)*16+14", (Fraction(110), [25, 19, 16, 14])),
        (" 1/3 + 2 ", (Fraction(7, 3), [1, 3, 2])),
        ("8÷2−1", (Fraction(3), [8, 2, 1])),  # noqa: RUF001 - as people write it
        ("1/0", None),
        ("2**9", None),
        ("-3", None),
        ("1.5+1", None),
        ("True+1", None),
        ("__import__('os')", None),
        ("", None),
        ("(" * 150, None),
        ("1+" * 150 + "1", None),
    ],
)
def test_an_expression_is_read_exactly_and_never_run(text: str, read: tuple[Fraction, list[int]] | None) -> None:
    assert read_expression(text) == read
