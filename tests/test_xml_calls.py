"""Tool calls between their tokens: what is read, what is refused, and that no reply makes reading fail or crawl."""

from typing import Any

import pytest

from envs.messages import Reply, ToolCall, ToolSpec
from rl.chat.calls.style import CALL, CALL_END, MAX_CALLS, MalformedCall
from rl.chat.calls.xml import call_text, check_sayable, read_call
from rl.chat.format import ChatError
from rl.chat.formats.nemotron import THINK_END, NemotronFormat

TOOL = ToolSpec("f", "", {"type": "object", "properties": {"n": {"type": "integer"}, "o": {"type": "object"}}})


def call(*parameters: tuple[str, str]) -> str:
    body = "".join(f"<parameter={name}>\n{value}\n</parameter>\n" for name, value in parameters)
    return f"\n<function=f>\n{body}</function>\n"


def test_blanks_around_calls_and_parameters_do_not_matter() -> None:
    text = " \n<function=f>\n\n  <parameter=n>\n3\n</parameter>\n \n<parameter=x>\n\n</parameter>\n</function>  \n"
    assert read_call(text, (TOOL,)) == ToolCall("f", {"n": 3, "x": ""})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<function=f>",
        "<function=>\n</function>",
        "<function=f></function>",
        "<function=f>\n<parameter=n>\n3\n</parameter>\n",
        "<function=f> x\n</function>",
        "<function=f>\n<parameter=n> 3 </parameter>\n</function>",
        "<function=f>\n<parameter=n\n>\n3\n</parameter>\n</function>",
        "<function=f>\n<parameter=>\n3\n</parameter>\n</function>",
        "<function=f>\nx<parameter=n>\n3\n</parameter>\n</function>",
        "<function=f>\n</function>\n</function>",
        "<function=f>\n</function>\nx",
    ],
)
def test_a_call_of_another_form_is_malformed(text: str) -> None:
    with pytest.raises(MalformedCall, match=r"(does|do) not read"):
        read_call(text, (TOOL,))


def test_a_call_of_an_unknown_tool_has_texts_as_arguments() -> None:
    assert read_call(call(("n", "3")).replace("=f>", "=g>"), (TOOL,)) == ToolCall("g", {"n": "3"})


def test_what_the_policy_made_up_is_repeated_to_it_in_part_only() -> None:
    with pytest.raises(MalformedCall) as caught:
        read_call(call(("k" * 10_000, "1"), ("k" * 10_000, "2")), (TOOL,))
    assert len(str(caught.value)) < 200


def test_deep_json_and_too_many_calls_are_malformed() -> None:
    format = NemotronFormat()
    deep = format.parse((CALL, call(("o", "[" * 100_000)), CALL_END), (TOOL,), "off")
    assert "parameter o cannot be read: a value is JSON of more than 64 levels" in deep.malformed
    pieces = (CALL, call(), CALL_END)
    assert len(format.parse(pieces * MAX_CALLS, (TOOL,), "off").tool_calls) == MAX_CALLS
    many = format.parse(pieces * 50_000, (TOOL,), "off")
    assert (many.malformed, many.tool_calls) == (f"more than {MAX_CALLS} tool calls in one reply", ())


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "text",
    [
        "<parameter=" * 100_000,
        "<parameter=a>\n" * 100_000,
        "\n</parameter>\n" * 100_000,
        "<parameter=a>\n" + "\n</parameter>" * 100_000,
        "</function>  " * 100_000,
        " " * 1_000_000,
        "\n" * 1_000_000,
        "<" * 1_000_000,
        ">" * 1_000_000,
        "<function=f>\n" * 100_000,
        "".join(f"<parameter=p{n}>\n\n</parameter>\n" for n in range(30_000)),
    ],
)
def test_megabytes_are_read_in_linear_time(text: str) -> None:
    format = NemotronFormat()
    for inside in (text, f"<function=f>\n{text}</function>", f"<function=f>\n<parameter=n>\n{text}\n</parameter>\n"):
        format.parse((CALL, inside, CALL_END), (TOOL,), "off")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("pieces", [(CALL,), (CALL_END,), (CALL, "x"), (THINK_END,), (" ", CALL, CALL_END)])
def test_hundreds_of_thousands_of_control_tokens_are_read_in_linear_time(pieces: Any) -> None:
    for budget in ("off", "unlimited"):
        NemotronFormat().parse(pieces * 200_000, (TOOL,), budget)
        NemotronFormat().parse((THINK_END, CALL, *pieces * 200_000), (TOOL,), budget)


@pytest.mark.parametrize("value", ["a\n</parameter>\nb", "\n</parameter>", "\n</parameter>\n"])
def test_a_value_that_would_end_its_parameter_cannot_be_taught(value: str) -> None:
    with pytest.raises(ChatError, match="argument x holds the line </parameter>"):
        NemotronFormat().reply(Reply("", "", (ToolCall("f", {"x": value}),)), "off")


@pytest.mark.parametrize("value", ["</parameter>", "</parameter>\nb", "a </parameter>\n", "\n", "", " x ", "\n\n"])
def test_a_value_that_comes_near_to_it_is_read_as_it_was_written(value: str) -> None:
    said = ToolCall("f", {"x": value})
    check_sayable(said)
    assert read_call(call_text(said), (TOOL,)) == said


@pytest.mark.parametrize("said", [ToolCall("a\nb", {}), ToolCall("f>", {}), ToolCall("", {}), ToolCall("f", {"a>": 1})])
def test_a_name_that_would_not_be_read_back_cannot_be_taught(said: ToolCall) -> None:
    with pytest.raises(ChatError, match="cannot be written"):
        check_sayable(said)
