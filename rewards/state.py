"""Does a state hold in the end what it should? Databases as plain values, compared record by record."""

from collections.abc import Mapping
from typing import Any


def state_differences(state: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """The paths at which two states of dicts, lists and plain values differ, such as `mail.3.folder`; types count."""
    return list(_differences(state, wanted, ""))


def state_reached(state: Mapping[str, Any], wanted: Mapping[str, Any]) -> float:
    """1.0 when the states are equal, else 0.0."""
    return float(not state_differences(state, wanted))


def _differences(left: Any, right: Any, path: str) -> Any:
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        for key in sorted({*left, *right}, key=str):
            below = f"{path}.{key}" if path else str(key)
            if key in left and key in right:
                yield from _differences(left[key], right[key], below)
            else:
                yield below
    elif type(left) is not type(right) or left != right:
        yield path
