"""How are XML tool calls, `<function=NAME>` and `<parameter=NAME>`, written and parsed between the call tokens?

This is the style of Nemotron 3 and Qwen3-Coder. It has no quoting: a value that contains the line `</parameter>` cannot
be expressed, and text and numbers look alike (see `rl.chat.calls.parameter_values`).
"""

from collections.abc import Sequence

from envs.messages import ToolCall, ToolSpec
from rl.chat.calls.parameter_values import UnreadableValue, read_value
from rl.chat.calls.style import CALL, CALL_END, MalformedCall, read_bracketed
from rl.chat.format import ChatError, Pieces, Token, json_text

MAX_SHOWN_CHARACTERS = 100
"""Maximum length of a name, made up by the policy, that is repeated to it."""
_FUNCTION, _FUNCTION_END = "<function=", "</function>"
_PARAMETER, _PARAMETER_END = "<parameter=", "\n</parameter>\n"


class XmlCalls:
    """Any number of calls, each between `<tool_call>` and `</tool_call>`."""

    tokens: tuple[Token, ...] = (CALL, CALL_END)

    def write(self, call: ToolCall) -> Pieces:
        check_sayable(call)
        return (CALL, call_text(call), CALL_END)

    def read(self, pieces: Pieces, tools: Sequence[ToolSpec]) -> tuple[str, tuple[ToolCall, ...]]:
        return read_bracketed(pieces, lambda text: read_call(text, tools))


def call_text(call: ToolCall) -> str:
    """The call as a policy writes it. Raises `ChatError` for an argument that JSON cannot hold."""
    parameters = (
        f"{_PARAMETER}{name}>\n{_value_text(value, name)}{_PARAMETER_END}" for name, value in call.arguments.items()
    )
    return f"\n{_FUNCTION}{call.name}>\n{''.join(parameters)}{_FUNCTION_END}\n"


def check_sayable(call: ToolCall) -> None:
    """Raises `ChatError` for a call that would not be read as it was written."""
    for name in (call.name, *call.arguments):
        if not name or ">" in name or "\n" in name:
            raise ChatError(
                f"a call of {call.name!r} cannot be written: {name!r} holds '>' or a line break, or nothing"
            )
    for name, value in call.arguments.items():
        if _PARAMETER_END in f"{_value_text(value, name)}\n":
            raise ChatError(
                f"a call of {call.name} cannot be written: its argument {name} holds the line </parameter>, which this"
                " chat format cannot quote"
            )


def read_call(text: str, tools: Sequence[ToolSpec]) -> ToolCall:
    """The call in the text between the call tokens. Time is linear in the text. Raises `MalformedCall`."""
    text = text.strip()
    head, line, body = text.partition("\n")
    name = head.removeprefix(_FUNCTION).removesuffix(">")
    if not line or not name or ">" in name or head != f"{_FUNCTION}{name}>" or not body.endswith(_FUNCTION_END):
        raise MalformedCall("tool call does not read <function=NAME> ... </function>", "form")
    schema = next((tool.parameters for tool in tools if tool.name == name), None)
    return ToolCall(name, _read_parameters(body.removesuffix(_FUNCTION_END), schema))


def _read_parameters(body: str, schema: object) -> dict[str, object]:
    arguments: dict[str, object] = {}
    place = 0
    while (found := _next_parameter(body, place)) is not None:
        name, value, place = found
        if name in arguments:
            raise MalformedCall(f"parameter {name[:MAX_SHOWN_CHARACTERS]} is given twice", "arguments")
        try:
            arguments[name] = read_value(value, name, schema)
        except UnreadableValue as error:
            raise MalformedCall(
                f"parameter {name[:MAX_SHOWN_CHARACTERS]} cannot be read: {error}", "arguments"
            ) from None
    if body[place:].strip():
        raise MalformedCall(
            "arguments do not read <parameter=NAME> VALUE </parameter>, each on lines of its own", "form"
        )
    return arguments


def _next_parameter(body: str, place: int) -> tuple[str, str, int] | None:
    """Name, value and end of the parameter that begins at `place`, after blanks; None when there is none."""
    start = body.find(_PARAMETER, place)
    if start < 0 or body[place:start].strip():
        return None
    name_end = body.find(">", start)
    name = body[start + len(_PARAMETER) : name_end]
    if name_end < 0 or not name or "\n" in name or not body.startswith("\n", name_end + 1):
        return None
    end = body.find(_PARAMETER_END, name_end + 2)
    return (name, body[name_end + 2 : end], end + len(_PARAMETER_END)) if end >= 0 else None


def _value_text(value: object, name: str) -> str:
    return value if isinstance(value, str) else json_text(value, f"argument {name}")
