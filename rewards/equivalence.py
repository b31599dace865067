"""Do two function calls do the same? Compares them after normalisation, with the defaults of their tool's schema.

Written for single turns of an expert's conversations (PivotRL, arXiv:2603.21383): a call earns the reward if it is
functionally equivalent to the expert's, not only if it is equal as text. The rules:

- Names are equal, and so are arguments. The order of keys never counts, that of items in a list does; calls in one turn
  have no order.
- Numbers are equal by value: 2, 2.0 and 2e0. Booleans are no numbers.
- Where the schema says so, a text is read as what it stands for: "2" is 2 for a number, "true" is true for a boolean,
  JSON text is its value for an object or array; and a number is its text for a string.
- An argument that equals its default in the schema is the same as none; so is null for one that is not required.
- Texts: `exact` compares every character; `spaces` (the default) ignores blanks around a text and takes a run of blanks
  as one; `words` also ignores case and punctuation, as the Berkeley leaderboard does (`rewards.calls`). A text that
  differs from one value of the schema's `enum` in case and blanks only is that value, except in `exact`.

A value that is no JSON (NaN, a set), nested deeper than 100, or a number of thousands of digits equals nothing.
"""

import json
import math
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from rewards.calls import Call, Category, judge_calls, plain
from rewards.strict_json import read_json

Texts = Literal["exact", "spaces", "words"]
TEXTS: tuple[Texts, ...] = get_args(Texts)
MAX_DEPTH = 100
MAX_BITS = 10_000
"""Of a whole number; Python refuses to print numbers of about 14,000."""


class NotComparableError(ValueError):
    """A value that equals nothing. Says why."""


def judge_equivalence(
    calls: Sequence[Call], wanted: Sequence[Call], schemas: Mapping[str, Mapping[str, Any]], texts: Texts = "spaces"
) -> Category:
    """`right` if the calls do what the wanted ones do, in any order, else what is wrong with the first that does not.

    `schemas` has the JSON Schema of the parameters by the tool's name. Raises `NotComparableError` for wanted calls
    that equal nothing.
    """
    expected = [normal_call(call, schemas, texts) for call in wanted]
    if len(calls) != len(wanted):  # before anything is normalised: a policy may write thousands
        return judge_calls(calls, expected)
    try:
        given = [normal_call(call, schemas, texts) for call in calls]
    except NotComparableError:
        return "wrong_value"
    return judge_calls(given, expected, judge=_judge_equal)


def normal_call(call: Call, schemas: Mapping[str, Mapping[str, Any]], texts: Texts) -> Call:
    """The one form of all calls that are equivalent to this one. Raises `NotComparableError`."""
    name, arguments = call
    return name, _normal_object(arguments, schemas.get(name, {}), texts, depth=0)


def _judge_equal(call: Call, wanted: Call) -> Category:
    """What is wrong with one call, or `right`; both are normal."""
    (name, given), (wanted_name, expected) = call, wanted
    if name != wanted_name:
        return "wrong_function"
    if given.keys() - expected.keys():
        return "unknown_argument"
    if expected.keys() - given.keys():
        return "missing_argument"
    wrong = [key for key in expected if not _same(given[key], expected[key])]
    if not wrong:
        return "right"
    return "wrong_value" if type(given[wrong[0]]) is type(expected[wrong[0]]) else "wrong_type"


def _same(left: Any, right: Any) -> bool:
    """Whether two normal values are equal; as JSON, since Python takes True for 1."""
    return json.dumps(left, sort_keys=True) == json.dumps(right, sort_keys=True)


def _normal(value: Any, schema: Mapping[str, Any], texts: Texts, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise NotComparableError(f"nested deeper than {MAX_DEPTH}")
    value = _as_declared(value, _kinds(schema))
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return _normal_number(value)
    if isinstance(value, str):
        return _normal_text(value, schema, texts)
    if isinstance(value, list | tuple):
        items = _schema(schema.get("items"))
        return [_normal(item, items, texts, depth + 1) for item in value]
    if isinstance(value, Mapping):
        return _normal_object(value, schema, texts, depth + 1)
    raise NotComparableError(f"a {type(value).__name__} is no JSON value")


def _normal_object(value: Mapping[str, Any], schema: Mapping[str, Any], texts: Texts, depth: int) -> dict[str, Any]:
    if not all(isinstance(key, str) for key in value):
        raise NotComparableError("a key is no text")
    properties = _schema(schema.get("properties"))
    needed = {one for one in _list(schema.get("required")) if isinstance(one, str)}
    normal = {}
    for key, item in value.items():
        own = _schema(properties.get(key))
        one = _normal(item, own, texts, depth)
        if one is None and key not in needed:
            continue
        if "default" not in own or not _same(one, _normal(own["default"], own, texts, depth)):
            normal[key] = one
    return normal


def _as_declared(value: Any, kinds: set[str]) -> Any:
    """The value that was meant, where the schema declares another type than the value has."""
    if not kinds:
        return value
    if isinstance(value, str) and "string" not in kinds:
        return _read(value, kinds)
    if isinstance(value, int | float) and not isinstance(value, bool) and kinds <= {"string", "null"}:
        number = _normal_number(value)
        return json.dumps(number)
    return value


def _read(text: str, kinds: set[str]) -> Any:
    """The value that the text stands for if it has a declared type, else the text."""
    try:
        value = read_json(text.strip().lower() if kinds <= {"boolean", "null"} else text)
    except ValueError:
        return text
    kind = {bool: "boolean", int: "integer", float: "number", list: "array", dict: "object", type(None): "null"}
    declared = kinds | ({"integer", "number"} if kinds & {"integer", "number"} else set())
    return value if kind.get(type(value)) in declared else text


def _normal_number(value: float) -> int | float:
    if isinstance(value, float):
        if not math.isfinite(value):
            raise NotComparableError(f"{value} is not finite")
        return int(value) if value.is_integer() else value
    if value.bit_length() > MAX_BITS:
        raise NotComparableError("a number has thousands of digits")
    return value


def _normal_text(text: str, schema: Mapping[str, Any], texts: Texts) -> str:
    if texts == "exact":
        return text
    spaced = " ".join(unicodedata.normalize("NFC", text).split())
    members = [one for one in _list(schema.get("enum")) if isinstance(one, str)]
    alike = [one for one in members if " ".join(one.split()).casefold() == spaced.casefold()]
    if text not in members and len(alike) == 1:
        spaced = " ".join(alike[0].split())
    return plain(spaced) if texts == "words" else spaced


def _kinds(schema: Mapping[str, Any]) -> set[str]:
    declared = schema.get("type")
    return {declared} if isinstance(declared, str) else {kind for kind in _list(declared) if isinstance(kind, str)}


def _schema(value: Any) -> Mapping[str, Any]:
    """JSON Schema allows booleans in place of schemas."""
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
