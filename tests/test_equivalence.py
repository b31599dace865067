"""Equivalent calls: numbers, types, defaults, texts and order; and values that equal nothing."""

import time
from typing import Any

import pytest

from rewards.calls import Category
from rewards.equivalence import NotComparableError, Texts, judge_equivalence

PROPERTIES: dict[str, Any] = {
    "city": {"type": "string"},
    "unit": {"type": "string", "enum": ["Celsius", "Fahrenheit"], "default": "Celsius"},
    "days": {"type": "integer", "default": 1},
    "limit": {"type": ["number", "null"]},
    "live": {"type": "boolean", "default": False},
    "tags": {"type": "array", "items": {"type": "integer"}},
    "where": {
        "type": "object",
        "properties": {"lat": {"type": "number"}, "exact": {"type": "boolean", "default": True}},
    },
    "any": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
    "odd": True,
}
SCHEMAS = {"get": {"type": "object", "properties": PROPERTIES, "required": ["city", "limit"]}}


def judged(given: dict[str, Any], wanted: dict[str, Any], texts: Texts = "spaces") -> Category:
    base = {"city": "Rome", "limit": 5}
    return judge_equivalence([("get", {**base, **given})], [("get", {**base, **wanted})], SCHEMAS, texts)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        *(({"limit": 5.0}, {}), ({"limit": "5"}, {}), ({"limit": 5e0}, {"limit": "5.0"})),
        ({"limit": 0.5}, {"limit": "5e-1"}),
        *(({"limit": None}, {"limit": None}), ({"limit": "null"}, {"limit": None})),
        *(({"days": 1}, {}), ({}, {"days": 1.0}), ({"days": "1"}, {}), ({"days": None}, {}), ({"live": "False"}, {})),
        *(({"unit": "celsius "}, {}), ({"unit": "FAHRENHEIT"}, {"unit": "Fahrenheit"}), ({"any": None}, {})),
        *(({"city": " New  York\n"}, {"city": "New York"}), ({"city": "Zu\u0308rich"}, {"city": "Zürich"})),
        *(({"city": 12}, {"city": "12"}), ({"city": "\ud800"}, {"city": "\ud800"})),
        *(({"tags": "[1, 2]"}, {"tags": [1, 2.0]}), ({"tags": ["1"]}, {"tags": [1]}), ({"tags": []}, {"tags": []})),
        ({"where": '{"lat": 1}'}, {"where": {"exact": True, "lat": 1.0}}),
        ({"where": {}}, {"where": {"exact": "true"}}),
        *(({"odd": {"b": 1, "a": [True]}}, {"odd": {"a": [True], "b": 1}}), ({"new": None}, {})),
    ],
)  # fmt: skip
def test_these_do_the_same(given: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert judged(given, wanted) == judged(wanted, given) == "right"


@pytest.mark.parametrize(
    ("given", "wanted", "category"),
    [
        ({"limit": 6}, {}, "wrong_value"),
        ({"limit": True}, {"limit": 1}, "wrong_type"),
        ({"odd": [1]}, {"odd": [True]}, "wrong_value"),
        ({"odd": "5"}, {"odd": 5}, "wrong_type"),
        ({"city": "rome"}, {}, "wrong_value"),
        ({"city": None}, {}, "wrong_type"),
        ({"days": 2}, {}, "unknown_argument"),
        ({}, {"days": 2}, "missing_argument"),
        ({"tags": [2, 1]}, {"tags": [1, 2]}, "wrong_value"),
        ({"where": {"exact": False}}, {"where": {}}, "wrong_value"),
        ({"unit": "Kelvin"}, {"unit": "Fahrenheit"}, "wrong_value"),
        ({"limit": "5 m"}, {}, "wrong_type"),
        ({"limit": "NaN"}, {}, "wrong_type"),
    ],
)
def test_these_do_not(given: dict[str, Any], wanted: dict[str, Any], category: Category) -> None:
    assert judged(given, wanted) == category


def test_texts_are_compared_as_strictly_as_asked() -> None:
    pairs = [("a b", "a b"), ("a  b ", "a b"), ("A, b.", "a b"), ("a c", "a b")]
    assert [judged({"city": left}, {"city": right}, "exact") for left, right in pairs] == ["right"] + [
        "wrong_value"
    ] * 3
    assert [judged({"city": left}, {"city": right}, "spaces") for left, right in pairs] == ["right"] * 2 + [
        "wrong_value"
    ] * 2
    assert [judged({"city": left}, {"city": right}, "words") for left, right in pairs] == ["right"] * 3 + [
        "wrong_value"
    ]
    assert judged({"unit": "celsius"}, {}, "exact") == "unknown_argument"


def test_parallel_calls_have_no_order_and_are_counted() -> None:
    one, two = ("get", {"city": "Rome", "limit": 1}), ("get", {"city": "Oslo", "limit": 1})
    assert judge_equivalence([two, one], [one, two], SCHEMAS) == "right"
    assert judge_equivalence([one, one], [one, two], SCHEMAS) == "wrong_value"
    assert judge_equivalence([one], [one, one], SCHEMAS) == "wrong_number_of_calls"
    assert judge_equivalence([("other", {}), one], [one, two], SCHEMAS) == "wrong_function"
    assert judge_equivalence([], [one], SCHEMAS) == "no_call"
    assert judge_equivalence([one], [], SCHEMAS) == "unexpected_call"
    assert judge_equivalence([], [], SCHEMAS) == "right"
    assert judge_equivalence([("bare", {"x": 1})], [("bare", {"x": 1.0})], {}) == "right"


DEEP: Any = []
for _ in range(5000):
    DEEP = [DEEP]


NO_JSON = (float("nan"), float("inf"), 10**5000, DEEP, {1}, {1: 2}, {"a": {2: 3}}, b"x", [float("nan")], object())


def test_what_is_no_json_equals_nothing_and_harms_nothing() -> None:
    for value in NO_JSON:
        assert judged({"odd": value}, {"odd": 1}) == "wrong_value"
        with pytest.raises(NotComparableError):
            judged({"odd": 1}, {"odd": value})


def test_thousands_of_calls_and_deep_texts_cost_little() -> None:
    begun = time.monotonic()
    one = ("get", {"city": "Rome", "limit": 1})
    assert judge_equivalence([one] * 100_000, [one], SCHEMAS) == "wrong_number_of_calls"
    assert judge_equivalence([one] * 5000, [one] * 5000, SCHEMAS) == "right"
    assert judged({"tags": "[" * 100_000}, {"tags": [1]}) == "wrong_type"
    assert judged({"where": '{"a":' * 900 + "1" + "}" * 900}, {"where": {}}) == "wrong_value"
    assert judged({"city": "x " * 500_000}, {}) == "wrong_value"
    assert time.monotonic() - begun < 20
