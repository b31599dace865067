"""Which code did the reply give, and are the values it computed the right ones?"""

import re
from typing import Any

FENCE = re.compile(r"```[\w+-]*[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)


def extract_code(text: str) -> str:
    """The last fenced block of the text, closed or not; the whole text when there is no fence."""
    blocks = FENCE.findall(text)
    return blocks[-1] if blocks else text


def same_value(left: Any, right: Any) -> bool:
    """Equality of JSON values that keeps types apart: 1, 1.0 and True differ, and NaN equals nothing."""
    if type(left) is not type(right):
        return False
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same_value, left, right))
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same_value(left[key], right[key]) for key in left)
    return left == right


def share_correct(values: list[Any], expected: list[Any]) -> float:
    """Share of the expected values that were computed, in order, in [0, 1]; 0 for another number of values."""
    if len(values) != len(expected) or not expected:
        return 0.0
    return sum(map(same_value, values, expected)) / len(expected)
