"""Replies with a known right verdict, one a line of tests/data/cases: instructions, languages, schemas.

`kind` groups cases, `why` says why the verdict is right.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from rewards.constraints import Constraint, follows
from rewards.instructions import Instruction, follows_strictly
from rewards.schema import schema_scores

FOLDER = Path(__file__).parent / "data" / "cases"


def cases(name: str) -> list[Any]:
    lines = [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text().splitlines()]
    return [pytest.param(line, id=f"{place}-{line['kind']}") for place, line in enumerate(lines)]


@pytest.mark.parametrize("case", cases("instructions"))
def test_instructions_are_followed_or_not(case: dict[str, Any]) -> None:
    name, arguments = case["instruction"], case["arguments"]
    if ":" in name:
        followed = follows_strictly(case["reply"], Instruction(name, arguments))
    else:
        followed = follows(case["reply"], Constraint(name, arguments["value"]))
    assert followed == bool(case["right"]), case["why"]


@pytest.mark.parametrize("case", cases("language"))
def test_languages_are_recognised(case: dict[str, Any]) -> None:
    instruction = Instruction("language:response_language", {"language": case["language"]})
    assert follows_strictly(case["reply"], instruction) == bool(case["right"]), case["why"]


@pytest.mark.parametrize("case", cases("schema"))
def test_data_fulfils_its_schema_or_not(case: dict[str, Any]) -> None:
    assert schema_scores(case["reply"], case["schema"], case["surface"])["valid"] == case["right"], case["why"]
