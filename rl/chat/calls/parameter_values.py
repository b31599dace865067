"""How is the text of a tool's parameter read, for formats that write values without quotes? By its JSON Schema.

The text is read as JSON if the schema asks for a value of that kind; otherwise it stays text, and the tool reports what
is wrong with it. So `3` is the number for `integer`, `anyOf: [integer, null]` and `enum: [3]`, and the text for
`string`. These are the choices where the format is ambiguous:

- A schema that takes both text and something else (`type: [string, integer]`) gets the other type if the text
  reads as one: `3` is a number and `null` is None there. A policy cannot quote, so it cannot write them otherwise.
- A schema that does not state a parameter's type (`true`, `{}`, no entry) gets text.
- A whole number may be written `3.0` for `integer`, as JSON Schema allows. NaN, infinities and numbers of thousands of
  digits are not JSON, so they stay text.

What a policy writes is bounded in size and depth before it is read, and reading takes linear time.
"""

import json
import math
import re
from collections.abc import Mapping
from urllib.parse import unquote

from envs.messages import valid

MAX_JSON_CHARACTERS = 1_000_000
MAX_JSON_DEPTH = 64
MAX_SCHEMA_DEPTH = 64
MAX_SCHEMA_PARTS = 256
"""How far references and combinations in a schema are followed; it may refer to itself."""


class UnreadableValue(ValueError):
    """JSON that is too large, too deep, or has a duplicate key. The message is for the policy."""


def read_value(text: str, name: str, parameters: object) -> object:
    """The value that `text` stands for as the parameter `name` of a tool whose JSON Schema is `parameters`.

    The schema may be anything. Raises `UnreadableValue`.
    """
    schema = _property(parameters, name)
    if not _says_something(schema):
        return text
    try:
        value = read_json(text)
    except UnreadableValue:
        if asks_for("", schema, parameters):
            return text
        raise
    except ValueError:
        return text
    if isinstance(value, float) and value.is_integer() and not asks_for(0.5, schema, parameters):
        value = int(value)
    return value if not isinstance(value, str) and asks_for(value, schema, parameters) else text


def takes_null(name: str, parameters: object) -> bool:
    """Whether the tool's schema asks for null as a value of this parameter."""
    return asks_for(None, _property(parameters, name), parameters)


def asks_for(value: object, schema: object, root: object) -> bool:
    """Whether a schema asks for values like this one, by type, enumeration and combination.

    Only the value itself is checked, not its contents. Local references are resolved from `root`.
    """
    return _verdict(value, schema, root, 0, {}) is True


def read_json(text: str) -> object:
    """The JSON value in a text that a policy wrote. Raises `UnreadableValue`, and `ValueError` for what is no JSON."""
    if len(text) > MAX_JSON_CHARACTERS:
        raise UnreadableValue(f"a value has more than {MAX_JSON_CHARACTERS:,} characters of JSON")
    if not text.lstrip().startswith(("[", "{")):
        return valid(json.loads(text, parse_constant=_refuse, parse_float=_finite))
    if _depth(text) > MAX_JSON_DEPTH:
        raise UnreadableValue(f"a value is JSON of more than {MAX_JSON_DEPTH} levels")
    return valid(json.loads(text, parse_constant=_refuse, parse_float=_finite, object_pairs_hook=_without_duplicates))


_STRUCTURE = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[\[{\]}]', re.DOTALL)


def _depth(text: str) -> int:
    """The deepest nesting of brackets outside of strings."""
    depth = deepest = 0
    for found in _STRUCTURE.finditer(text):
        if found[0] in "[{":
            depth += 1
            deepest = max(deepest, depth)
            if deepest > MAX_JSON_DEPTH:
                break
        elif found[0] in "]}":
            depth -= 1
    return deepest


def _refuse(constant: str) -> object:
    raise ValueError(f"{constant} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("a number beyond double precision")
    return number


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    read = dict(pairs)
    if len(read) < len(pairs):
        raise UnreadableValue("a JSON object names a key twice")
    return read


def _property(parameters: object, name: str) -> object:
    """The schema of a property, also behind a reference or in a part of a combination; None when there is none."""
    parts, fallback = [parameters], None
    for part in parts:  # grows while it is walked
        if not isinstance(part, Mapping):
            continue
        properties = part.get("properties")
        if isinstance(properties, Mapping) and name in properties:
            return properties[name]
        if fallback is None:
            fallback = part.get("additionalProperties")
        if "$ref" in part:
            parts.append(_resolved(part["$ref"], parameters))
        for key in ("allOf", "anyOf", "oneOf"):
            parts += part[key] if isinstance(part.get(key), list) else []
        del parts[MAX_SCHEMA_PARTS:]
    return fallback


def _says_something(schema: object) -> bool:
    return isinstance(schema, Mapping) and bool(schema)


def _verdict(value: object, schema: object, root: object, depth: int, seen: dict[str, bool | None]) -> bool | None:
    """True if the schema asks for such a value, False if it refuses it, None if it says nothing about it.

    `seen` holds the verdicts of references, None for those that are being followed: a schema may refer to itself.
    """
    if schema is False:
        return False
    if not isinstance(schema, Mapping) or depth > MAX_SCHEMA_DEPTH:
        return None
    if value is None and schema.get("nullable") is True:  # OpenAPI 3.0
        return True
    verdicts = [_type_verdict(value, schema)]
    if isinstance(schema.get("enum"), list):
        verdicts.append(any(_same(value, choice) for choice in schema["enum"]))
    if "const" in schema:
        verdicts.append(_same(value, schema["const"]))
    for key in ("anyOf", "oneOf"):
        parts = schema.get(key)
        if isinstance(parts, list) and parts:
            found = [_verdict(value, part, root, depth + 1, seen) for part in parts]
            verdicts.append(True if True in found else None if None in found else False)
    parts = schema.get("allOf")
    verdicts += [_verdict(value, part, root, depth + 1, seen) for part in parts] if isinstance(parts, list) else []
    if isinstance(reference := schema.get("$ref"), str):
        if reference not in seen:
            seen[reference] = None
            seen[reference] = _verdict(value, _resolved(reference, root), root, depth + 1, seen)
        verdicts.append(seen[reference])
    return False if False in verdicts else True if True in verdicts else None


def _type_verdict(value: object, schema: Mapping[str, object]) -> bool | None:
    kinds = schema.get("type")
    if kinds is None and {"properties", "additionalProperties"} & set(schema):
        kinds = "object"
    if kinds is None and {"items", "prefixItems"} & set(schema):
        kinds = "array"
    if not isinstance(kinds, str | list):
        return None
    return any(_is_of_kind(value, kind) for kind in ([kinds] if isinstance(kinds, str) else kinds))


def _is_of_kind(value: object, kind: object) -> bool:
    match kind:
        case "null":
            return value is None
        case "boolean":
            return isinstance(value, bool)
        case "integer":
            return isinstance(value, int) and not isinstance(value, bool)
        case "number":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case "string":
            return isinstance(value, str)
        case "array":
            return isinstance(value, list)
        case "object":
            return isinstance(value, dict)
    return False


def _same(value: object, choice: object) -> bool:
    """Equality of JSON values, for which true is not 1."""
    return isinstance(value, bool) == isinstance(choice, bool) and value == choice


def _resolved(reference: object, root: object) -> object:
    """What a local reference (`#/$defs/Point`, RFC 6901) points to; None when it leads nowhere."""
    if not isinstance(reference, str) or not reference.startswith("#"):
        return None
    here = root
    for part in filter(None, unquote(reference[1:]).split("/")):
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(here, list):
            here = here[int(name)] if name.isdecimal() and int(name) < len(here) else None
        else:
            here = here.get(name) if isinstance(here, Mapping) else None
    return here
