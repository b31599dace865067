"""Can the policy use a Python interpreter that keeps its variables? Questions whose answers must be computed."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from envs.messages import Reply, ToolCall, valid_text
from envs.sandbox import Limits, PythonSession
from envs.text_env import Split, choose_level, draw_in_split
from rewards.numbers import number_correct

LIMITS = Limits(cpu_s=5, wall_s=3.0, output_bytes=4096)
MAX_SECONDS = 10.0
"""For all calls of an episode: one reply may have many, and together they must end before a step's deadline."""
QUESTIONS = {
    1: {
        "What is {a} * {b} + {c}?": "print({a} * {b} + {c})",
        "What is {a} to the power of 3, modulo {b}?": "print({a} ** 3 % {b})",
    },
    2: {
        "How many primes are below {b}?": (
            "print(sum(all(n % d for d in range(2, int(n**.5) + 1)) for n in range(2, {b})))"
        ),
        "What is the sum of the digits of {a} to the power of {c}?": "print(sum(map(int, str({a} ** {c}))))",
        "How many whole numbers from 1 to {b} have a digit sum divisible by {d}?": (
            "print(sum(sum(map(int, str(n))) % {d} == 0 for n in range(1, {b} + 1)))"
        ),
    },
}


@dataclass(frozen=True, slots=True)
class Question:
    text: str
    code: str


def draw_question(rng: np.random.Generator, questions: dict[str, str]) -> Question:
    text = str(rng.choice(list(questions)))
    values = {
        "a": int(rng.integers(100, 1000)),
        "b": int(rng.integers(1000, 10_000)),
        "c": int(rng.integers(20, 100)),
        "d": int(rng.integers(3, 12)),
    }
    return Question(text.format(**values), questions[text].format(**values))


class Python:
    """Answer a question by running Python; variables persist from one call to the next.

    The answer is the last number of the last reply. The interpreter runs in the sandbox (`envs.sandbox`), for at most
    ten seconds per episode.

    Options: `level` 1 (large products and powers), 2 (primes, digit sums, counting).
    Reward parts: `answer` 1 if the number is right.
    """

    max_turns = 5
    _session: PythonSession | None = None

    def reset(self, rng: np.random.Generator, split: Split, level: int = 1) -> str:
        questions: Any = choose_level(level, QUESTIONS)
        self._question = draw_in_split(rng, split, lambda rng: draw_question(rng, questions), lambda item: item.text)
        self.key = self._question.text
        self.close()
        self._is_closed = False
        self._printed, self._seconds = "", 0.0
        return self._question.text

    def run(self, code: str) -> str:
        """Run Python code and give what it prints"""
        if self._is_closed:  # a call that was running when the episode was given up
            raise RuntimeError("the episode is over")
        if self._seconds > MAX_SECONDS:
            raise ValueError(f"code has run for {MAX_SECONDS:g} s, which is all the time there is; answer now")
        self._session = self._session or PythonSession(LIMITS)
        started_s = time.monotonic()
        self._printed = valid_text(self._session.run(code))
        self._seconds += time.monotonic() - started_s
        return self._printed

    def score(self, reply: Reply) -> dict[str, float]:
        expected = expected_answer(self._question.code)
        return {"answer": number_correct(reply.text, expected)}

    def gold_reply(self) -> Reply:
        if not self._printed:
            return Reply("", "", (ToolCall("run", {"code": self._question.code}),))
        return Reply(self._printed.strip())

    def close(self) -> None:
        self._is_closed = True
        if self._session is not None:
            self._session.close()
            self._session = None


def expected_answer(code: str) -> int:
    """What our own code for the question prints."""
    printed: list[int] = []
    exec(code, {"print": printed.append})
    return printed[0]
