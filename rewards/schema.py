"""Does a text hold data of a demanded shape? JSON, YAML and XML, read strictly and checked against a JSON Schema.

Only the shape is judged, never the content. Texts come from a policy, so size and depth are bounded, JSON may hold no
duplicate keys and no NaN, YAML no anchors and XML no declarations, and a schema is never fetched from elsewhere.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal
from xml.etree import ElementTree

import jsonschema
import yaml

Surface = Literal["json", "yaml", "xml"]
MAX_CHARACTERS = 20_000
MAX_DEPTH = 20
FENCE = re.compile(r"\A\s*```[\w+-]*[ \t]*\n(.*?)\n?```\s*\Z", re.DOTALL)


class UnreadableError(ValueError):
    """The text is not what it should be: another format, too large, too deep, or ambiguous."""


def schema_scores(text: str, schema: Mapping[str, Any], surface: Surface = "json") -> dict[str, float]:
    """Scores in [0, 1] by name: `parsed`, `keys` (share of the required keys), `valid` (all of the schema holds).

    All of the text must be the data; one code fence around it is allowed. The schema describes an object.
    """
    try:
        value = read_data(text, schema, surface)
    except UnreadableError:
        return {"parsed": 0.0, "keys": 0.0, "valid": 0.0}
    required: Sequence[str] = schema.get("required", ())
    found = [key for key in required if key in value]
    try:
        valid = jsonschema.Draft202012Validator(schema).is_valid(value)
    except (ArithmeticError, ValueError):  # a number that the schema's arithmetic cannot take
        valid = False
    return {"parsed": 1.0, "keys": len(found) / len(required) if required else 1.0, "valid": float(valid)}


def read_data(text: str, schema: Mapping[str, Any], surface: Surface) -> Mapping[str, Any]:
    """The object in the text. XML has no types: its texts become what the schema asks for. Raises `UnreadableError`."""
    if len(text) > MAX_CHARACTERS:
        raise UnreadableError(f"longer than {MAX_CHARACTERS} characters")
    fenced = FENCE.match(text)
    try:
        value = READERS[surface](fenced[1] if fenced else text, schema)
    except (ValueError, LookupError, ArithmeticError, RecursionError, yaml.YAMLError, ElementTree.ParseError) as error:
        raise UnreadableError(f"no {surface}: {error}") from error
    if not isinstance(value, Mapping):
        raise UnreadableError(f"a {type(value).__name__} and no object")
    if _depth(value) > MAX_DEPTH:
        raise UnreadableError(f"nested deeper than {MAX_DEPTH}")
    return value


def _read_json(text: str, _: Mapping[str, Any]) -> Any:
    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) != len(pairs):
            raise ValueError("a key is there twice")
        return dict(pairs)

    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is no JSON")

    return json.loads(text, object_pairs_hook=no_duplicates, parse_constant=refuse)


def _read_yaml(text: str, _: Mapping[str, Any]) -> Any:
    if any(isinstance(token, yaml.AnchorToken | yaml.AliasToken | yaml.TagToken) for token in yaml.scan(text)):
        raise ValueError("anchors and tags are not allowed")
    return yaml.safe_load(text)


def _read_xml(text: str, schema: Mapping[str, Any]) -> Any:
    if "<!" in text or "<?" in text.strip()[1:]:
        raise ValueError("declarations are not allowed")
    return _typed(ElementTree.fromstring(text.strip()), schema)


def _typed(element: ElementTree.Element, schema: Mapping[str, Any]) -> Any:
    kind = schema.get("type")
    if kind == "object":
        properties = schema.get("properties", {})
        names = [child.tag for child in element]
        if len(set(names)) != len(names):
            raise ValueError("an element is there twice")
        return {child.tag: _typed(child, properties.get(child.tag, {})) for child in element}
    if kind == "array":
        return [_typed(child, schema.get("items", {})) for child in element]
    text = (element.text or "").strip()
    if kind in ("integer", "number", "boolean"):
        try:
            return json.loads(text)
        except ValueError:
            return text
    return text


READERS: dict[Surface, Callable[[str, Mapping[str, Any]], Any]] = {
    "json": _read_json,
    "yaml": _read_yaml,
    "xml": _read_xml,
}


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level and depth <= MAX_DEPTH:
        depth += 1
        containers = [item for item in level if isinstance(item, dict | list)]
        level = [below for item in containers for below in (item.values() if isinstance(item, dict) else item)]
    return depth
