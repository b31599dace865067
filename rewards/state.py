"""Does the final state equal the wanted state? Databases as plain values, compared record by record."""

from collections.abc import Iterator, Mapping
from typing import Any

from rewards.code import same_value


def state_differences(state: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """The paths, such as `mail.3.folder`, at which two states of dicts, lists and plain values differ; types matter."""
    return list(_differences(state, wanted, ""))


def state_reached(state: Mapping[str, Any], wanted: Mapping[str, Any]) -> float:
    """1.0 if the states are equal, else 0.0."""
    return float(not state_differences(state, wanted))


def _differences(left: Any, right: Any, path: str) -> Iterator[str]:
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        keys = [{(type(key), key) for key in side} for side in (left, right)]  # 1 and True are two keys
        for kind, key in sorted(keys[0] | keys[1], key=lambda typed: str(typed[1])):
            below = f"{path}.{key}" if path else str(key)
            if all((kind, key) in side for side in keys):
                yield from _differences(left[key], right[key], below)
            else:
                yield below
    elif not same_value(left, right):
        yield path
