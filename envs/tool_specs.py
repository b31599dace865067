"""How does a typed Python function become a tool? Type hints and docstring give its spec; arguments are checked."""

import functools
import inspect
import re
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, PydanticUserError, ValidationError, create_model

from envs.messages import ToolSpec

MAX_PROBLEMS = 3
"""Maximum number of reported problems per call: a list with a thousand wrong items needs no thousand sentences."""
ARGUMENT_LINE = re.compile(r"^\s+(\w+)(?: \([^)]*\))?: (.+)$")


def tool_spec(method: Callable[..., Any]) -> ToolSpec:
    """The spec of a tool: name, first line of the docstring, JSON Schema of the parameters.

    Parameters are described by the lines `name: what it is` below `Args:`. Raises `TypeError` for a parameter without a
    type hint, or with a type that JSON cannot represent.
    """
    schema = arguments_model(_function(method)).model_json_schema()
    described = _described_arguments(inspect.getdoc(method) or "")
    properties = {
        name: _without_titles(value) | ({"description": described[name]} if name in described else {})
        for name, value in schema.get("properties", {}).items()
    }
    parameters = {"type": "object", "properties": properties, "required": schema.get("required", [])}
    if "$defs" in schema:
        parameters["$defs"] = _without_titles(schema["$defs"])
    description = (inspect.getdoc(method) or "").split("\n")[0]
    return ToolSpec(_function(method).__name__, description, parameters)


def read_arguments(method: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The call's arguments in the method's types; text is converted if that does not change the value.

    Raises `ValueError` that tells the policy what is wrong.
    """
    model = arguments_model(_function(method))
    fields = model.model_fields
    needed = {name for name, field in fields.items() if field.is_required()}
    if not needed <= set(given) <= set(fields):
        told = ", ".join(fields) or "no arguments"
        raise ValueError(f"{_function(method).__name__} takes {told}, got {', '.join(given) or 'none':.200}")
    try:
        read = model.model_validate(dict(given))
    except ValidationError as error:
        told = [_problem(detail, model) for detail in error.errors(include_url=False)[:MAX_PROBLEMS]]
        more = error.error_count() - len(told)
        raise ValueError("; ".join(told) + (f"; and {more} more" if more else "")) from None
    return {name: getattr(read, name) for name in read.model_fields_set}


@functools.cache
def arguments_model(function: Callable[..., Any]) -> type[BaseModel]:
    """A pydantic model of the function's parameters, without `self`. Raises `TypeError`."""
    hints = typing.get_type_hints(function, include_extras=True)
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if name == "self":
            continue
        if name not in hints:
            raise TypeError(f"tool {function.__name__}: parameter {name} needs a type hint")
        default = ... if parameter.default is inspect.Parameter.empty else parameter.default
        fields[name] = (Annotated[hints[name], BeforeValidator(_no_truth_value(hints[name]))], default)
    config = ConfigDict(extra="forbid", coerce_numbers_to_str=True, allow_inf_nan=False)
    try:
        model = create_model(function.__name__, __config__=config, **fields)
        model.model_json_schema()
    except PydanticUserError as error:
        raise TypeError(f"tool {function.__name__}: a parameter's type is none of JSON's: {error.message}") from error
    return model


def _function(method: Callable[..., Any]) -> Callable[..., Any]:
    return getattr(method, "__func__", method)


def _no_truth_value(hint: Any) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if isinstance(value, bool) and hint in (int, float, str):
            raise ValueError("a truth value is no number")
        return value

    return check


def _problem(detail: Mapping[str, Any], model: type[BaseModel]) -> str:
    name = str(detail["loc"][0]) if detail["loc"] else "the call"
    kind = model.model_json_schema()["properties"].get(name, {}).get("type")
    plain = kind in ("string", "integer", "number", "boolean") and len(detail["loc"]) == 1
    wanted = f"must be {kind}" if plain else detail["msg"][:1].lower() + detail["msg"][1:]
    return f"{name} {wanted}, got {detail['input']!r:.100}"


def _without_titles(schema: Any) -> Any:
    """Remove the titles that pydantic adds to everything: they only repeat the names."""
    if isinstance(schema, list):
        return [_without_titles(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {key: _without_titles(value) for key, value in schema.items() if key != "title" or isinstance(value, dict)}


def _described_arguments(doc: str) -> dict[str, str]:
    _, _, below = doc.partition("Args:\n")
    lines = (ARGUMENT_LINE.match(line) for line in below.split("\n\n")[0].splitlines())
    return {line[1]: line[2] for line in lines if line}
