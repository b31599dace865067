"""Scorers on small replies whose right score is known, of `tests/data/cases`: one JSON object a line.

Files named `..._relatives` hold variations on the cases of the file without that ending.
"""

import contextlib
import io
import json
import sys
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from rewards.calls import judge_calls
from rewards.choice import choice_correct, chosen_letter
from rewards.code import extract_code
from rewards.exact import text_correct
from rewards.math_answer import answer_correct
from rewards.numbers import number_correct

Case = Mapping[str, Any]


def cases(*names: str) -> list[Any]:
    folder = Path(__file__).parent / "data" / "cases"
    return [
        pytest.param(json.loads(line), id=f"{name}-{number}")
        for name in names
        for number, line in enumerate((folder / f"{name}.jsonl").read_text().splitlines(), 1)
    ]


def gold(case: Case) -> Any:
    value = case["gold"]
    return Fraction(value["fraction"]) if isinstance(value, dict) else value


@pytest.mark.parametrize("case", cases("math", "math_relatives"))
def test_mathematics_is_right_or_wrong(case: Case) -> None:
    assert answer_correct(case["reply"], gold(case)) == case["right"]


@pytest.mark.parametrize("case", cases("number", "number_relatives"))
def test_numbers_are_right_or_wrong(case: Case) -> None:
    assert number_correct(case["reply"], gold(case)) == case["right"]


@pytest.mark.parametrize("case", cases("choice"))
def test_choices_are_right_or_wrong(case: Case) -> None:
    assert choice_correct(case["reply"], case["gold"], case.get("letters", "ABCD")) == case["right"]


@pytest.mark.parametrize("case", cases("choice_relatives"))
def test_choices_are_read(case: Case) -> None:
    assert chosen_letter(case["reply"], case.get("letters", "ABCD")) == case["chosen"]


@pytest.mark.parametrize("case", cases("calls"))
def test_calls_are_right_or_wrong(case: Case) -> None:
    assert (judge_calls(case["calls"], case["wanted"]) == "right") == bool(case["right"])


@pytest.mark.parametrize("case", cases("exact"))
def test_texts_are_right_or_wrong(case: Case) -> None:
    assert text_correct(case["reply"], case["gold"]) == case["right"]


@pytest.mark.parametrize("case", cases("code_block", "code_block_relatives"))
def test_the_block_with_the_solution_is_the_one_that_is_run(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(case.get("stdin", "")))
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()) as stdout:
        exec(extract_code(case["reply"]), names)  # code of our own cases
    if "function" in case:
        assert [names[case["function"]](*arguments) for arguments, _ in case["tests"]] == [
            value for _, value in case["tests"]
        ]
    else:
        assert stdout.getvalue().strip() == case["stdout"]
