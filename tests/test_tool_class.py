"""Tools as methods: how they are described, and what becomes of a call's arguments."""

import threading

import pytest

from envs.tool_class import ToolClassEnv
from envs.tool_specs import read_arguments
from envs.tool_use.store import Store


def test_tools_are_described_by_their_methods() -> None:
    tools = {tool.name: tool for tool in ToolClassEnv(Store).tools}
    assert sorted(tools) == ["buy", "price", "stock"]
    assert tools["buy"].description == "Buy items"
    assert tools["buy"].parameters == {
        "type": "object",
        "properties": {"item": {"type": "string"}, "count": {"type": "integer"}},
        "required": ["item", "count"],
    }


def lamp(name: str, level: int, on: bool, share: float) -> str:
    return f"{name} {level} {on} {share}"


def test_tool_arguments_are_converted_from_text_but_never_changed() -> None:
    given = {"name": 7, "level": " 3 ", "on": "False", "share": "0.5"}
    assert read_arguments(lamp, given) == {"name": "7", "level": 3, "on": False, "share": 0.5}
    for name, value in (("level", 2.7), ("level", True), ("on", "maybe"), ("share", "nan"), ("name", ["a"])):
        with pytest.raises(ValueError, match=f"{name} must be"):
            read_arguments(lamp, {**given, name: value})


def test_a_tool_with_an_unusual_parameter_is_refused_when_the_environment_is_made() -> None:
    class Bad(Store):
        def look(self, where: threading.Thread) -> str:
            """Look"""
            return str(where)

    with pytest.raises(TypeError, match="tool look: a parameter's type is none of JSON's"):
        ToolClassEnv(Bad)
