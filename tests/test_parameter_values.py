"""The text of a tool's parameter becomes the value that its JSON Schema asks for, whatever schema and text may be."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.messages import Message, ToolSpec
from envs.tool_specs import read_arguments, tool_spec
from rl.chat.calls.parameter_values import MAX_JSON_DEPTH, UnreadableValue, read_value, takes_null
from rl.chat.formats.nemotron import CALL, CALL_END, NemotronFormat

CASES = [json.loads(line) for line in (Path(__file__).parent / "data/cases/tool_parse.jsonl").read_text().splitlines()]
INTEGER, STRING, NULL = {"type": "integer"}, {"type": "string"}, {"type": "null"}
POINT = {"type": "object", "properties": {"a": INTEGER}}


def read(text: str, schema: Any, **more: Any) -> Any:
    return read_value(text, "n", {"type": "object", "properties": {"n": schema}, **more})


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["kind"])
def test_collected_calls_are_read_as_one_of_the_right_results(case: dict[str, Any]) -> None:
    format, tool = NemotronFormat(), ToolSpec("f", "d", case["schema"])
    format.opening([Message("user", "go")], (tool,), "off")
    reply = format.parse((CALL, case["call"], CALL_END), (tool,), "off")
    result = "malformed" if reply.malformed else dict(reply.tool_calls[0].arguments)
    assert result in case["right"]


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        (INTEGER, "3", 3),
        (INTEGER, " 3\t", 3),
        (INTEGER, "-0", 0),
        (INTEGER, "3.0", 3),
        (INTEGER, "3.5", "3.5"),
        (INTEGER, "true", "true"),
        (INTEGER, "null", "null"),
        (INTEGER, "0x10", "0x10"),
        (INTEGER, "", ""),
        ({"type": "number"}, "3.0", 3.0),
        ({"type": "number"}, "1e3", 1000.0),
        ({"type": "number"}, "NaN", "NaN"),
        ({"type": "number"}, "-Infinity", "-Infinity"),
        ({"type": "number"}, "1e999", "1e999"),
        ({"type": "number"}, "true", "true"),
        ({"type": "boolean"}, "true", True),
        ({"type": "boolean"}, "True", "True"),
        ({"type": "boolean"}, "1", "1"),
        (STRING, "3", "3"),
        (STRING, "null", "null"),
        (STRING, '"quoted"', '"quoted"'),
        (STRING, '{"a": 1}', '{"a": 1}'),
        ({"type": ["integer", "null"]}, "3", 3),
        ({"type": ["integer", "null"]}, "null", None),
        ({"type": ["string", "null"]}, "null", None),
        ({"type": ["string", "integer"]}, "3", 3),  # a policy cannot quote: it has no other way to say the number
        ({"type": ["string", "integer"]}, "three", "three"),
        ({"anyOf": [STRING, POINT]}, '{"a": 1}', {"a": 1}),
        ({"anyOf": [STRING, POINT]}, "{a: 1}", "{a: 1}"),
        ({"oneOf": [INTEGER, NULL]}, "null", None),
        ({"oneOf": [{"anyOf": [INTEGER, NULL]}, {"type": "array"}]}, "[1]", [1]),
        ({"allOf": [{"type": ["integer", "string"]}, {"minimum": 1}]}, "5", 5),
        ({"allOf": [{"type": ["integer", "null"]}, INTEGER]}, "null", "null"),
        ({"type": "integer", "nullable": True}, "null", None),
        ({"enum": [1, 2]}, "2", 2),
        ({"enum": [1, 2]}, "3", "3"),
        ({"enum": ["1", "2"]}, "1", "1"),
        ({"enum": ["a", None]}, "null", None),
        ({"enum": [True]}, "1", "1"),
        ({"enum": [[1, 2]]}, "[1, 2]", [1, 2]),
        ({"const": 3}, "3", 3),
        ({"const": 3}, "4", "4"),
        ({"const": None}, "null", None),
        ({"const": True}, "true", True),
        ({"properties": {"a": INTEGER}}, '{"a": 1}', {"a": 1}),
        ({"items": INTEGER}, "[1]", [1]),
        ({"$ref": "#/nowhere"}, "3", "3"),
        ({"$ref": "https://example.com/schema"}, "3", "3"),
        ({"$ref": 5}, "3", "3"),
        ({"type": 5}, "3", "3"),
        ({"type": [None, {}]}, "3", "3"),
        ({"type": "array", "anyOf": None, "allOf": 3, "enum": "x"}, "[3]", [3]),
        (True, "3", "3"),
        (False, "3", "3"),
        (None, "3", "3"),
        ({}, "3", "3"),
        ({"description": "anything"}, "3", "3"),
        ("integer", "3", "3"),
        ([INTEGER], "3", "3"),
    ],
)
def test_a_text_is_read_as_the_schema_asks(schema: Any, text: str, value: Any) -> None:
    found = read(text, schema)
    assert (type(found), found) == (type(value), value)


def test_references_are_followed_also_in_a_circle_and_through_escapes() -> None:
    tree = {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#/$defs/T"}, NULL]}}}
    assert read('{"next": null}', {"$ref": "#/$defs/T"}, **{"$defs": {"T": tree}}) == {"next": None}
    assert (
        read("3", {"$ref": "#/$defs/A"}, **{"$defs": {"A": {"$ref": "#/$defs/B"}, "B": {"$ref": "#/$defs/A"}}}) == "3"
    )
    assert read("3", {"$ref": "#/definitions/a~1b%20~0"}, definitions={"a/b ~": INTEGER}) == 3
    assert read("3", {"$ref": "#/allOf/0"}, allOf=[INTEGER]) == 3
    doubling = {f"L{n}": {"anyOf": [{"$ref": f"#/$defs/L{n + 1}"}] * 2} for n in range(30)} | {"L30": INTEGER}
    assert read("3", {"$ref": "#/$defs/L0"}, **{"$defs": doubling}) == 3


@pytest.mark.parametrize(
    "parameters",
    [
        {"$ref": "#/$defs/Args", "$defs": {"Args": {"properties": {"n": INTEGER}}}},
        {"allOf": [{"properties": {"m": STRING}}, {"properties": {"n": INTEGER}}]},
        {"properties": {"m": STRING}, "additionalProperties": INTEGER},
        {"$ref": "#/$defs/A", "$defs": {"A": {"anyOf": [{"$ref": "#/$defs/A"}, {"properties": {"n": INTEGER}}]}}},
    ],
)
def test_a_parameter_is_found_behind_references_and_combinations(parameters: dict[str, Any]) -> None:
    assert read_value("3", "n", parameters) == 3


@pytest.mark.parametrize("parameters", [None, True, [], "object", {"properties": None}, {"properties": [1]}])
def test_a_schema_that_names_no_parameters_reads_them_as_text(parameters: Any) -> None:
    assert read_value("3", "n", parameters) == "3"


def test_what_is_too_deep_too_large_or_names_a_key_twice_is_malformed() -> None:
    array = {"type": "array"}
    assert read("[" * MAX_JSON_DEPTH + "]" * MAX_JSON_DEPTH, array)
    for text in ("[" * (MAX_JSON_DEPTH + 1) + "]" * (MAX_JSON_DEPTH + 1), "[" * 500_000, '[{"a":' * 100_000):
        with pytest.raises(UnreadableValue, match="64 levels"):
            read(text, array)
        assert read(text, {"type": ["array", "string"]}) == text  # as a text it is as good as any
    with pytest.raises(UnreadableValue, match="1,000,000 characters"):
        read("[" + "1," * 600_000 + "1]", array)
    with pytest.raises(UnreadableValue, match="names a key twice"):
        read('{"o": [{"a": 1, "a": 2}]}', POINT)
    brackets_in_text = json.dumps({"a": '[\\"' * 1000})
    assert read(brackets_in_text, POINT) == json.loads(brackets_in_text)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "text", ['"' * 900_000, '"\\' * 450_000, "9" * 900_000, "-" * 900_000, " " * 900_000, "[" + '"\\"' * 300_000]
)
def test_long_values_are_read_in_linear_time(text: str) -> None:
    assert read(text, {"type": ["string", "array", "integer"]}) == text


def test_half_a_surrogate_pair_inside_a_value_is_replaced() -> None:
    assert read('{"\\ud800": ["a\\udfff", "\\ud83d\\ude00"]}', POINT) == {"\ufffd": ["a\ufffd", "\U0001f600"]}


def opt(n: int | None = None, names: list[str] | None = None, size: int | str = 1) -> str:
    """A tool."""
    return ""


def test_a_tool_of_our_own_takes_what_its_schema_made_of_the_text() -> None:
    spec = tool_spec(opt)
    texts = {"n": "null", "names": '["a"]', "size": "3"}
    assert read_arguments(opt, {name: read_value(text, name, spec.parameters) for name, text in texts.items()}) == {
        "n": None,
        "names": ["a"],
        "size": 3,
    }
    assert read_arguments(opt, {"n": read_value("3", "n", spec.parameters)}) == {"n": 3}
    assert takes_null("n", spec.parameters)
    assert not takes_null("size", spec.parameters)


jsons = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.sampled_from(["integer", "string", "null", "#/$defs/A", "a"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "anyOf", "allOf", "$ref", "$defs", "A", "properties", "n", "enum", "required"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@given(jsons, st.sampled_from(["3", "null", "[1]", "{}", "text", "1e400", "\ud800"]))
@settings(max_examples=300)
def test_no_schema_makes_a_prompt_or_a_reply_fail(schema: Any, text: str) -> None:
    tool = ToolSpec("f", "", schema)
    format = NemotronFormat()
    format.opening([Message("user", "go")], (tool,), "off")
    call = f"<function=f>\n<parameter=n>\n{text}\n</parameter>\n</function>"
    assert len(format.parse((CALL, call, CALL_END), (tool,), "off").tool_calls) == 1
