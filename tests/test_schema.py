"""Data that a parser takes and JSON cannot say, bombs, and depth: refused, never an exception and never slow."""

from typing import Any

import pytest

from rewards.schema import schema_scores
from rewards.strict_json import is_json, read_json

ANY = {"type": "object"}
NUMBER = {"type": "object", "properties": {"a": {"type": "number"}}, "required": ["a"]}
ARRAY = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}, "required": ["a"]}


@pytest.mark.parametrize(
    ("text", "surface"),
    [
        *(('{"a": NaN}', "json"), ('{"a": [{"b": -Infinity}]}', "json"), ('{"a": 1e999}', "json")),
        *(("a: .nan", "yaml"), ("a: -.INF", "yaml"), ("a: [1, [{b: .NaN}]]", "yaml"), ("a: 1.0e+999", "yaml")),
        *(('{"a": 1, "a": 2}', "json"), ('{"a": {"b": 1, "b": 1}}', "json"), ('{"a": 1, "\\u0061": 2}', "json")),
        *(("a: 1\na: 2", "yaml"), ("a: {b: 1, b: 2}", "yaml"), ("a: 1\n'a': 2", "yaml")),
        *(("1: 2", "yaml"), ("yes: 2", "yaml"), ("? [a]\n: 2", "yaml"), ("<<: {a: 1}", "yaml"), ("~: 1", "yaml")),
        *(("a: &x 1\nb: *x", "yaml"), ("a: &x [1]", "yaml"), ("a: !!int 1", "yaml"), ("a: ! 1", "yaml")),
        ("a: &a [x]\nb: &b [*a, *a, *a]\nc: &c [*b, *b, *b]", "yaml"),
        *(("a: 1\n---\na: 2", "yaml"), ("- 1", "yaml"), ("a: [1", "yaml"), ("\0", "yaml"), ("a: \ud800", "yaml")),
        *(("[" * 19_990, "yaml"), ("{a: " * 5000, "yaml"), ("- " * 9990, "yaml"), ("? " * 9990, "yaml")),
        *(("a: " + "[" * 30 + "]" * 30, "yaml"), ('{"a": ' * 30 + "1" + "}" * 30, "json"), ("[" * 19_990, "json")),
        *(("<a>" * 6600, "xml"), ("<r>" + "<a>" * 3000 + "</a>" * 3000 + "</r>", "xml"), ("<r>\ud800</r>", "xml")),
        ('<!DOCTYPE r [<!ENTITY a "x"><!ENTITY b "&a;&a;">]><r>&b;</r>', "xml"),
        *(("<r>&b;</r>", "xml"), ("<r><!-- no --></r>", "xml"), ("<r><?go?></r>", "xml"), ("<r>1<a>1</a></r>", "xml")),
        *(("<r><a>1</a>2</r>", "xml"), ("<r><a>1<b/></a></r>", "xml"), ('{"a": ' + "1" * 5000 + "}", "json")),
        *(("x" * 20_001, "yaml"), ("a: " + "1" * 5000, "yaml")),
    ],
)
def test_what_json_cannot_say_and_what_is_too_large_is_not_read(text: str, surface: Any) -> None:
    schema = {**ANY, "properties": {"a": {}}}
    assert schema_scores(text, schema, surface) == {"parsed": 0.0, "keys": 0.0, "valid": 0.0}


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999", "nan", ".inf", "1_000", "01"])
def test_a_number_in_xml_is_one_of_json(text: str) -> None:
    assert schema_scores(f"<r><a>{text}</a></r>", NUMBER, "xml")["valid"] == 0.0
    assert schema_scores("<r><a> 1.5e3 </a></r>", NUMBER, "xml")["valid"] == 1.0


@pytest.mark.parametrize("surface", ["json", "yaml"])
@pytest.mark.parametrize(
    ("items", "valid"),
    [
        *(("[1, 2]", 1), ("[1, 1.0]", 0), ("[1, true]", 1), ('["1", 1]', 1), ('[{"x": 1}, {"x": 1.0}]', 0)),
        *(('[{"x": 1, "y": [2]}, {"y": [2], "x": 1}]', 0), ("[[1], [true]]", 1), ("[null, false, 0]", 1)),
    ],
)
def test_items_are_unique_as_json_schema_says(items: str, valid: float, surface: Any) -> None:
    assert schema_scores(f'{{"a": {items}}}', ARRAY, surface)["valid"] == valid


def test_schemas_with_true_and_lists_of_types_are_read() -> None:
    schema = {"type": "object", "properties": {"a": True, "b": {"type": ["integer", "null"]}}}
    assert schema_scores("<r><a>x</a><b>3</b></r>", schema, "xml")["valid"] == 1.0
    assert schema_scores("<r><a>x</a><b>null</b></r>", schema, "xml")["valid"] == 1.0
    assert schema_scores("<r><b>three</b></r>", schema, "xml")["valid"] == 0.0


def test_json_is_read_by_its_standard() -> None:
    assert read_json('{"a": [1, 2.5, null]}') == {"a": [1, 2.5, None]}
    for text in ("NaN", "[1e999]", '{"a": 1, "a": 1}', "[" * 100_000, "1" * 5000, "", "{a: 1}"):
        with pytest.raises(ValueError):
            read_json(text)
    assert [is_json(text) for text in ("1e999", '{"a": 1, "a": 1}', "1" * 5000, "NaN", "[" * 100_000)] == [
        *(True, True, True),
        *(False, False),
    ]
