"""Can the policy write data of a required shape? A JSON Schema to fulfil, in JSON, YAML or XML."""

import json
from collections.abc import Mapping
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import yaml

from envs.messages import Reply
from envs.scored import Row, scored
from envs.text_env import EnvironmentOptionError, choose_level
from rewards.rubric import Rubric
from rewards.schema import Surface, schema_scores

SURFACES: tuple[Surface, ...] = ("json", "yaml", "xml")
RUBRIC = Rubric({"parsed": 0.1, "keys": 0.2, "valid": 0.7})
THINGS = ("book", "person", "city", "order", "song", "plant")
NAMES = ("name", "title", "size", "weight", "year", "colour", "price", "count", "code", "active", "tags", "place")
COLOURS = ("red", "green", "blue", "white")
WORDS = ("alpha", "beta", "gamma", "delta")
LEVELS = {1: (2, 3, False), 2: (3, 5, False), 3: (4, 6, True)}
"""Minimum and maximum number of properties, and whether one of them is an object itself."""


def draw_property(rng: np.random.Generator) -> tuple[dict[str, Any], Any]:
    """A schema and a value that fulfils it."""
    kind = str(rng.choice(["string", "enum", "integer", "number", "boolean", "array"]))
    if kind == "string":
        least = int(rng.integers(2, 5))
        return {"type": "string", "minLength": least}, str(rng.choice(WORDS))
    if kind == "enum":
        return {"type": "string", "enum": list(COLOURS)}, str(rng.choice(COLOURS))
    if kind == "integer":
        low = int(rng.integers(1, 50))
        return {"type": "integer", "minimum": low, "maximum": low + 50}, low + int(rng.integers(0, 51))
    if kind == "number":
        return {"type": "number", "exclusiveMinimum": 0}, int(rng.integers(1, 100)) / 4
    if kind == "boolean":
        return {"type": "boolean"}, bool(rng.integers(2))
    least = int(rng.integers(1, 4))
    schema = {"type": "array", "items": {"type": "string"}, "minItems": least, "maxItems": 4}
    return schema, [str(rng.choice(WORDS)) for _ in range(least)]


def draw_object(rng: np.random.Generator, num: int, nested: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    names = [str(name) for name in rng.choice(NAMES, size=num, replace=False)]
    drawn = {name: draw_property(rng) for name in names}
    if nested:
        drawn[names[-1]] = draw_object(rng, 2, False)
    properties = {name: schema for name, (schema, _) in drawn.items()}
    schema = {"type": "object", "properties": properties, "required": names, "additionalProperties": False}
    return schema, {name: value for name, (_, value) in drawn.items()}


def write(value: Mapping[str, Any], surface: Surface, thing: str) -> str:
    if surface == "json":
        return json.dumps(value)
    return yaml.safe_dump(dict(value), sort_keys=False).strip() if surface == "yaml" else element(thing, value)


def element(name: str, value: Any) -> str:
    if isinstance(value, Mapping):
        inside = "".join(element(key, below) for key, below in value.items())
    elif isinstance(value, list):
        inside = "".join(element("item", below) for below in value)
    else:
        inside = escape(value if isinstance(value, str) else json.dumps(value))
    return f"<{name}>{inside}</{name}>"


def draw_row(rng: np.random.Generator, level: int = 1, surface: str = "any") -> Row:
    if surface not in ("any", *SURFACES):
        raise EnvironmentOptionError(f"surface must be any or one of {', '.join(SURFACES)}, got {surface!r}")
    fewest, most, nested = choose_level(level, LEVELS)
    schema, value = draw_object(rng, int(rng.integers(fewest, most + 1)), nested)
    thing = str(rng.choice(THINGS))
    chosen: Surface = SURFACES[int(rng.integers(3))] if surface == "any" else surface  # type: ignore[assignment]
    told = f"Invent a {thing}. Reply with {chosen.upper()} only, which fulfils this JSON Schema"
    if chosen == "xml":
        told += f" (one element <{thing}>, an element for each property, <item> for the items of a list)"
    return {
        "prompt": f"{told}:\n{json.dumps(schema)}",
        "gold": write(value, chosen, thing),
        "schema": schema,
        "surface": chosen,
    }


@scored(draw=draw_row)
def structured(reply: Reply, row: Row) -> dict[str, float]:
    """Write data that fulfils a JSON Schema, as JSON, YAML or XML. Only the shape is judged (`rewards.schema`).

    Options: `level` sets the number of properties, at 3 with a nested object; `surface` is `any`, `json`, `yaml` or
    `xml`.
    Reward parts: `parsed` 0.1, `keys` 0.2 times the share of required keys, `valid` 0.7 if the whole schema is
    fulfilled.
    """
    return RUBRIC(schema_scores(reply.text, row["schema"], row["surface"]))
