"""Reading numbers and judging worked answers, against answers computed by hand."""

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import psutil
import pytest

from rewards.expression import read_expression
from rewards.final_answer import final_answer, last_boxed
from rewards.math_answer import WORKERS, answer_correct, number_decides, verify_symbolically
from rewards.numbers import answered_number, number_correct, parse_number
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


def test_the_number_that_a_reply_answers_has_one_form() -> None:
    texts = ("1/2", "It is 0.5.", "x = \\frac{1}{2}", "#### .50", "50 %")
    assert {answered_number(text) for text in texts} == {"1/2"}
    assert answered_number("so 1,200 dollars") == answered_number("1200") == "1200"
    assert answered_number("no idea") is answered_number("2, 3") is None


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


@pytest.mark.slow
def test_an_answer_that_takes_too_long_is_wrong_and_blocks_nothing_after_it() -> None:
    hostile = "9^" * 150 + "9"
    assert verify_symbolically(hostile, "12", deadline_s=0.5) is False
    assert verify_symbolically(hostile, "12", deadline_s=0.5) is False
    assert answer_correct("#### 3*4", 12, deadline_s=60.0) == 1.0


HARD = [
    "9^{9^{9^{9}}}",
    "9^{9^9}!",
    "((9!)!)!",
    "2^{10^{10}}",
    "\\binom{1000000000}{500000000}",
    "\\sum_{k=1}^{10^{9}} k^{-2}",
    "\\prod_{k=1}^{10^{9}} k",
    "x^{x^{10^{9}}}",
]


def test_hard_answers_earn_nothing_and_keep_no_worker_from_the_others() -> None:
    pids = {answer_pid(number) for number in range(8)}
    for hard in HARD:
        assert answer_correct(f"\\boxed{{{hard}}}", 12) == 0.0
        assert answer_correct("#### 3*4", 12) == 1.0
    assert answer_correct("\\boxed{9^{9^9}}", "9^{9^{9}}") == 1.0  # the same text
    assert {answer_pid(number) for number in range(8)} == pids


def answer_pid(number: int) -> int:
    """The process that judges, which stays the same as long as none is killed; one question keeps one worker busy."""
    assert answer_correct(f"#### {number}+1", number + 1) == 1.0
    worker = WORKERS._idle.get()
    WORKERS._idle.put(worker)
    assert worker is not None
    return worker._process.pid


def test_a_worker_gives_up_by_itself_and_stays() -> None:
    before = answer_pid(1)
    assert verify_symbolically("\\int_0^1 e^{x^x} dx", "3", deadline_s=60.0) is False
    assert answer_pid(1) == before


SLOW_WORKER = """
import json, os, sys, time
print("ready", flush=True)
for line in sys.stdin:
    seconds = json.loads(line)
    if seconds is None:
        9 ** 9 ** 8  # holds the interpreter's lock for minutes
    time.sleep(seconds)
    print(os.getpid(), flush=True)
"""


@pytest.mark.slow
def test_waiting_for_a_worker_is_not_part_of_the_deadline(tmp_path) -> None:
    script = tmp_path / "slow_worker.py"
    script.write_text(SLOW_WORKER)
    pool = WorkerPool(script, 1, "")
    pool.ask(0.0, 60.0)
    with ThreadPoolExecutor(7) as threads:  # the last one waits longer than its deadline
        answers = list(threads.map(lambda _: pool.ask(0.5, 2.5), range(7)))
    assert len(set(answers)) == 1
    assert None not in answers


def test_a_worker_ends_with_its_host_even_in_the_middle_of_a_computation(tmp_path) -> None:
    script = tmp_path / "slow_worker.py"
    script.write_text(SLOW_WORKER)
    host = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import pathlib, sys, threading; from rewards.worker_pool import WorkerPool\n"
            "pool = WorkerPool(pathlib.Path(sys.argv[1]), 1, '')\n"
            "print(pool.ask(0.0, 60.0), flush=True)\n"
            "pool.ask(None, 600.0)",
            str(script),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert host.stdout is not None
    worker = int(host.stdout.readline())
    time.sleep(0.5)
    assert psutil.Process(worker).status() != psutil.STATUS_ZOMBIE
    host.kill()
    host.wait()
    host.stdout.close()
    deadline = time.monotonic() + 30.0
    while is_running(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(worker)


def is_running(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_a_worker_outlives_the_thread_that_asked_first(tmp_path) -> None:
    script = tmp_path / "slow_worker.py"
    script.write_text(SLOW_WORKER)
    pool, pids = WorkerPool(script, 1, ""), []
    for _ in range(2):
        thread = threading.Thread(target=lambda: pids.append(pool.ask(0.0, 60.0)))
        thread.start()
        thread.join()
    assert pids[0] == pids[1]


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
