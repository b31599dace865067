"""Does a worked answer end in the right value? Numbers are compared exactly; only the rest goes to math-verify.

math-verify (https://github.com/huggingface/Math-Verify) reads LaTeX and algebra. It bounds its own time with SIGALRM,
which fails outside of a process's main thread, and sympy can hang all the same; so it runs in worker processes that are
killed when an answer takes too long. They start with the first answer that needs them, and end with this process.
"""

import contextlib
import json
import os
import queue
import re
import selectors
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

from rewards.numbers import NUMBER, final_answer, parse_number

NUM_WORKERS = 2
DEADLINE_S = 5.0
START_DEADLINE_S = 60.0
MAX_ANSWER_CHARACTERS = 400
WORKER = Path(__file__).with_name("math_worker.py")
MATHEMATICS = re.compile(r"[\\^*/+=(){}<>|!%]|\d\s*[a-z]?\s*-\s*\d")


class MathWorkerError(RuntimeError):
    """No worker process could be started. Never the policy's doing."""


def answer_correct(text: str, expected: int | Fraction | str, deadline_s: float = DEADLINE_S) -> float:
    """1.0 when the final answer of `text` equals `expected`, else 0.0. An expected text is mathematics (LaTeX).

    An answer that math-verify cannot judge within `deadline_s` is wrong. Raises `MathWorkerError`.
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


class _Worker:
    """One process of `math_worker.py`: a line of JSON in, a line of JSON out."""

    def __init__(self) -> None:
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            raise MathWorkerError(f"no math-verify process could be started: {error}") from error
        if self._read_line(START_DEADLINE_S) != b"ready":
            self.kill()
            raise MathWorkerError(
                "the math-verify process did not start; is math-verify installed? Try: python -c 'import math_verify'"
            )

    def ask(self, answer: str, expected: str, deadline_s: float) -> bool | None:
        """The verdict; None when there is none in time, and the worker must be killed then."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps([answer, expected]).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return None
        line = self._read_line(deadline_s)
        return None if line is None else line == b"true"

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()

    def _read_line(self, deadline_s: float) -> bytes | None:
        assert self._process.stdout is not None
        line, deadline = b"", time.monotonic() + deadline_s
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while (left_s := deadline - time.monotonic()) > 0:
                if selector.select(left_s):
                    chunk = os.read(self._process.stdout.fileno(), 1024)
                    line += chunk
                    if not chunk or line.endswith(b"\n"):
                        return line.strip() or None
        return None


_idle: "queue.SimpleQueue[_Worker | None]" = queue.SimpleQueue()
for _ in range(NUM_WORKERS):
    _idle.put(None)  # a place for a worker that has not been started


def verify_symbolically(answer: str, expected: str, deadline_s: float = DEADLINE_S) -> bool:
    """math-verify's verdict in a worker process; False when it takes longer than `deadline_s`."""
    worker, verdict = _idle.get(), None
    try:
        worker = worker or _Worker()
        verdict = worker.ask(answer, expected, deadline_s)
    finally:
        if worker and verdict is None:  # it may still be busy with this answer
            worker.kill()
        _idle.put(worker if verdict is not None else None)
    return bool(verdict)
