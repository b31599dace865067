"""Which nulls of a row did an export fill in? An Arrow column gives each object the keys of all objects.

`datasets`, Parquet and JSONL files that were written from them have null where an object has no such key.
"""

from collections.abc import Mapping
from typing import Any

VALUES = frozenset({"default", "const", "enum", "examples"})
"""Keywords of a JSON Schema that hold values, in which null means null."""
NAMED = frozenset({"properties", "patternProperties", "dependentSchemas", "$defs", "definitions"})
"""Keywords that hold schemas by names, which may be those of keywords."""


def without_filling(value: Any) -> Any:
    """A value of an Arrow column without the keys that are null."""
    if isinstance(value, Mapping):
        return {key: without_filling(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_filling(item) for item in value]
    return value


def schema_without_filling(schema: Any) -> Any:
    """A JSON Schema without keywords and properties that are null: only values may be null in it."""
    if isinstance(schema, list):
        return [schema_without_filling(item) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    kept = {key: item for key, item in schema.items() if item is not None or key in VALUES}
    return {key: item if key in VALUES else _below(key, item) for key, item in kept.items()}


def _below(keyword: str, item: Any) -> Any:
    if keyword in NAMED and isinstance(item, Mapping):
        return {name: schema_without_filling(schema) for name, schema in item.items() if schema is not None}
    return schema_without_filling(item)
