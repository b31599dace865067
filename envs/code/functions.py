"""Can the policy write a small Python function from a description of its steps? Judged by hidden tests in a sandbox."""

import functools
import json
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from envs.messages import Message, Reply
from envs.sandbox import run_function
from envs.text_env import StepResult, TextEnv, choose_level, draw_in_split, read_score
from rewards.code import extract_code, share_correct
from rewards.rubric import Rubric

RUBRIC = Rubric({"runs": 0.1, "share": 0.2, "all": 0.7})
NUMBERS = (-7, -4, -1, 0, 2, 5, 8, 13)
LISTS = ([], [3], [2, 2], [5, -1, 4], [-6, 7, 0, 7], [1, 8, -3, 6, 2], [9, 4, -2, -5, 4, 10])
NUMBER_STEPS = {
    "add {}": "x + {}",
    "subtract {}": "x - {}",
    "multiply by {}": "x * {}",
    "modulo {}": "x % {}",
    "floor divide by {}": "x // {}",
    "cap at {}": "min(x, {})",
    "raise to at least {}": "max(x, {})",
    "square": "x * x",
    "negate": "-x",
    "absolute value": "abs(x)",
}
CONDITIONAL_STEPS = {
    "add {} if even": "x + {} if x % 2 == 0 else x",
    "subtract {} if odd": "x - {} if x % 2 == 1 else x",
    "add {} if negative": "x + {} if x < 0 else x",
    "negate if above {}": "-x if x > {} else x",
}
LIST_STEPS = {
    "keep even numbers": "[v for v in x if v % 2 == 0]",
    "keep numbers above {}": "[v for v in x if v > {}]",
    "add {} to each": "[v + {} for v in x]",
    "multiply each by {}": "[v * {} for v in x]",
    "sort": "sorted(x)",
    "reverse": "x[::-1]",
    "drop the first": "x[1:]",
}
LIST_ENDS = {"sum": "sum(x)", "count": "len(x)", "largest or 0": "max(x, default=0)"}


@dataclass(frozen=True, slots=True)
class Level:
    """How hard a function is: how many steps, of which kinds, and what comes after them."""

    num_steps: tuple[int, int]
    steps: dict[str, str]
    ends: dict[str, str]
    inputs: tuple[Any, ...]


LEVELS = {
    1: Level((2, 4), NUMBER_STEPS, {}, NUMBERS),
    2: Level((4, 6), NUMBER_STEPS, {}, NUMBERS),
    3: Level((2, 3), NUMBER_STEPS | CONDITIONAL_STEPS, {}, NUMBERS),
    4: Level((1, 2), LIST_STEPS, LIST_ENDS, LISTS),
}


@dataclass(frozen=True, slots=True)
class Description:
    """A function described by its steps: the phrase of each step, and its Python expression over `x`."""

    phrases: tuple[str, ...]
    expressions: tuple[str, ...]

    @property
    def prompt(self) -> str:
        return f"Write f(x): {', then '.join(self.phrases)}."

    @property
    def code(self) -> str:
        lines = [f"    x = {expression}" for expression in self.expressions]
        return "\n".join(["def f(x):", *lines, "    return x"])

    def values(self, argument: Any) -> list[Any]:
        """The value after each step, the argument first."""
        values = [argument]
        for expression in self.expressions:
            values.append(eval(expression, {"x": values[-1]}))  # our own text, never a policy's
        return values

    def is_sound(self, inputs: tuple[Any, ...]) -> bool:
        """Whether every step changes the value for some input, and no constant gives all the results."""
        tables = [self.values(argument) for argument in inputs]
        every_step = all(any(row[i] != row[i + 1] for row in tables) for i in range(len(self.expressions)))
        return (
            every_step and len({json.dumps(row[-1]) for row in tables}) > 2 and any(row[-1] != row[0] for row in tables)
        )


def draw_description(rng: np.random.Generator, level: Level) -> Description:
    """A sound description of this level; constants are 2 to 9."""
    while True:
        num_steps = int(rng.integers(level.num_steps[0], level.num_steps[1] + 1))
        chosen = [draw_step(rng, level.steps) for _ in range(num_steps)]
        if level.ends:
            chosen.append(draw_step(rng, level.ends))
        description = Description(tuple(phrase for phrase, _ in chosen), tuple(expression for _, expression in chosen))
        if description.is_sound(level.inputs):
            return description


def draw_step(rng: np.random.Generator, steps: dict[str, str]) -> tuple[str, str]:
    """Phrase and expression with a constant filled in."""
    phrase = str(rng.choice(list(steps)))
    constant = int(rng.integers(2, 10))
    return phrase.format(constant), steps[phrase].format(constant)


def draw_task(env: TextEnv, options: dict[str, Any] | None) -> tuple[Level, Description]:
    """The level that the options select, and a description of it in their split, drawn from the environment's rng."""
    split, chosen = env.read_options(options)
    level = choose_level(chosen["level"], LEVELS)
    draw = functools.partial(draw_description, level=level)
    return level, draw_in_split(env.np_random, split, draw, lambda description: description.prompt)


class Functions(TextEnv):
    """Write a Python function from its steps: `Write f(x): add 3, then square.`

    The code is the reply's text, or the fenced block in it that defines f. It runs on all hidden inputs in the sandbox
    (`envs.sandbox`). Its values are compared with the expected ones outside the sandbox, including types.

    Options: `level` 1 (two to four steps on a whole number), 2 (four to six), 3 (two or three, some with a condition),
    4 (one or two steps on a list and a final sum, count or maximum).
    Reward parts: `runs` 0.1 if f returns a value for every input, `share` 0.2 times the share of right values, `all`
    0.7 if all are right. A failure of the sandbox raises `SandboxError` and is not a reward.
    """

    OPTIONS: ClassVar = {"level": 1}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[tuple[Message, ...], dict[str, Any]]:
        super().reset(seed=seed)
        self._level, self._description = draw_task(self, options)
        return (Message("user", self._description.prompt),), {"key": self._description.prompt}

    def step(self, action: Reply) -> StepResult:
        result = run_function(extract_code(action.text, "f"), "f", [[argument] for argument in self._level.inputs])
        expected = [self._description.values(argument)[-1] for argument in self._level.inputs]
        share = share_correct(list(result.value or ()), expected)
        scores = {"runs": float(result.status == "ok"), "share": share, "all": float(share == 1.0)}
        reward, parts = read_score(RUBRIC(scores))
        how = f"{result.level}: {result.status} {result.detail}".strip()
        return (), reward, True, False, {"reward_parts": parts, "sandbox": how}

    def gold_reply(self) -> Reply:
        return Reply(self._description.code)
