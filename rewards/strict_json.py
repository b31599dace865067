"""Is a text JSON by the standard? Python's parser accepts more: NaN, Infinity and duplicate keys."""

import json
import math
from collections.abc import Callable
from typing import Any


def read_json(text: str) -> Any:
    """The value in the text. Raises `ValueError` for text that is not JSON, for numbers that are not finite or have
    thousands of digits, for nesting of about a thousand levels, and for an object with duplicate keys.
    """
    try:
        return json.loads(text, parse_constant=_refuse, parse_float=_finite, object_pairs_hook=_each_once)
    except RecursionError:
        raise ValueError("nested too deep") from None


def is_json(text: str) -> bool:
    """Whether the text follows the grammar (RFC 8259), which allows duplicate keys and numbers of any size."""
    unread: Callable[[str], Any] = str
    try:
        json.loads(text, parse_constant=_refuse, parse_float=unread, parse_int=unread)
    except (ValueError, RecursionError):
        return False
    return True


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite(digits: str) -> float:
    if not math.isfinite(value := float(digits)):
        raise ValueError(f"{digits:.40} is too large")
    return value


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) != len(pairs):
        raise ValueError("a key occurs twice")
    return found
