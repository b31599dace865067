"""Does a text hold data of the required shape? JSON, YAML and XML, parsed strictly and checked against a JSON Schema.

Only the shape is judged, never the content. Texts come from a policy, so size and depth are bounded. What JSON cannot
express is refused in all three formats: duplicate keys, keys that are not text, NaN and infinity. YAML (1.1, so `yes`
is a boolean) may have no anchors and no tags, XML no declarations, comments or text between elements. A schema is never
fetched from elsewhere.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal
from xml.etree import ElementTree

import jsonschema
import yaml
from jsonschema.validators import extend

from rewards.strict_json import read_json

Surface = Literal["json", "yaml", "xml"]
MAX_CHARACTERS = 20_000
MAX_DEPTH = 20
FENCE = re.compile(r"\A\s*```[\w+-]*[ \t]*\n(.*?)\n?```\s*\Z", re.DOTALL)


class UnreadableError(ValueError):
    """The text cannot be read as the format: it has another format, is too large, too deep, or ambiguous."""


def schema_scores(text: str, schema: Mapping[str, Any], surface: Surface = "json") -> dict[str, float]:
    """Scores in [0, 1] by name: `parsed`, `keys` (share of the required keys), `valid` (the whole schema holds).

    The whole text must be the data; one code fence around it is allowed. The schema describes an object.
    """
    try:
        value = read_data(text, schema, surface)
    except UnreadableError:
        return {"parsed": 0.0, "keys": 0.0, "valid": 0.0}
    required: Sequence[str] = schema.get("required", ())
    found = [key for key in required if key in value]
    try:
        valid = Validator(schema).is_valid(value)
    except (ArithmeticError, ValueError):  # a number that the schema's arithmetic cannot handle
        valid = False
    return {"parsed": 1.0, "keys": len(found) / len(required) if required else 1.0, "valid": float(valid)}


def read_data(text: str, schema: Mapping[str, Any], surface: Surface) -> Mapping[str, Any]:
    """The object in the text. XML has no types: its texts get those of the schema. Raises `UnreadableError`."""
    if len(text) > MAX_CHARACTERS:
        raise UnreadableError(f"longer than {MAX_CHARACTERS} characters")
    fenced = FENCE.match(text)
    try:
        value = READERS[surface](fenced[1] if fenced else text, schema)
    except (ValueError, LookupError, ArithmeticError, RecursionError, yaml.YAMLError, ElementTree.ParseError) as error:
        raise UnreadableError(f"not {surface}: {error}") from error
    if not isinstance(value, Mapping):
        raise UnreadableError(f"a {type(value).__name__}, not an object")
    _check_value(value)
    return value


def _check_value(value: Any) -> None:
    """Check level by level, so that depth uses no stack. Raises `UnreadableError`."""
    depth, level = 0, [value]
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise UnreadableError(f"nested deeper than {MAX_DEPTH}")
        if any(isinstance(item, float) and not math.isfinite(item) for item in level):
            raise UnreadableError("a number is not finite")
        containers = [item for item in level if isinstance(item, dict | list)]
        level = [below for item in containers for below in (item.values() if isinstance(item, dict) else item)]


def _unique_items(validator: Any, unique: Any, instance: Any, schema: Any) -> Iterator[jsonschema.ValidationError]:
    """JSON Schema's `uniqueItems` in linear time; jsonschema compares objects pair by pair."""
    if unique and validator.is_type(instance, "array") and len(set(map(_hashable, instance))) < len(instance):
        yield jsonschema.ValidationError("two items are equal")


def _hashable(value: Any) -> Any:
    """The same for values that are equal in JSON: 1 equals 1.0, and `true` does not equal 1."""
    if isinstance(value, dict):
        return dict, frozenset((key, _hashable(below)) for key, below in value.items())
    if isinstance(value, list):
        return list, tuple(map(_hashable, value))
    return (bool, value) if isinstance(value, bool) else value


Validator = extend(jsonschema.Draft202012Validator, {"uniqueItems": _unique_items})


class _YamlLoader(yaml.CSafeLoader):
    """Safe YAML with unique text keys. Parsed by libyaml, which PyYAML's wheels contain: ten times as fast."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        if any(key.tag != "tag:yaml.org,2002:str" for key, _ in node.value):
            raise ValueError("a key is not text")
        if len({key.value for key, _ in node.value}) != len(node.value):
            raise ValueError("a key occurs twice")
        return super().construct_mapping(node, deep)


def _read_yaml(text: str, _: Mapping[str, Any]) -> Any:
    depth = 0
    for event in yaml.parse(text, Loader=_YamlLoader):  # before construction, which is recursive
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) or getattr(event, "tag", None):
            raise ValueError("anchors and tags are not allowed")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ValueError(f"nested deeper than {MAX_DEPTH}")
    return yaml.load(text, Loader=_YamlLoader)


def _read_xml(text: str, schema: Mapping[str, Any]) -> Any:
    if "<!" in text or "<?" in text.strip()[1:]:
        raise ValueError("declarations are not allowed")
    return _typed(ElementTree.fromstring(text.strip()), schema)


def _typed(element: ElementTree.Element, schema: Any) -> Any:
    schema = schema if isinstance(schema, Mapping) else {}  # `true` allows anything
    kind = schema.get("type")
    if kind in ("object", "array"):
        if any((text or "").strip() for text in (element.text, *(child.tail for child in element))):
            raise ValueError("there is text between elements")
        if kind == "array":
            return [_typed(child, schema.get("items")) for child in element]
        properties = schema.get("properties") or {}
        if len({child.tag for child in element}) != len(element):
            raise ValueError("an element occurs twice")
        return {child.tag: _typed(child, properties.get(child.tag)) for child in element}
    if len(element):
        raise ValueError(f"there are elements inside {element.tag}")
    text = (element.text or "").strip()
    kinds = {kind} if isinstance(kind, str) else set(kind or ())
    if kinds & {"integer", "number", "boolean", "null"}:
        try:
            return read_json(text)
        except ValueError:
            return text
    return text


READERS: dict[Surface, Callable[[str, Mapping[str, Any]], Any]] = {
    "json": lambda text, _: read_json(text),
    "yaml": _read_yaml,
    "xml": _read_xml,
}
