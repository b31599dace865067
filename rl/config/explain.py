"""What does a configuration key mean? Read from attribute docstrings, types, constraints and defaults."""

import json
import textwrap
import types
import typing
from collections.abc import Sequence
from typing import Literal

import annotated_types
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from rl.config.checkpoint_defaults import ADAPTER_RATES, CHECKPOINT_DEFAULTS
from rl.config.errors import ConfigError, Problem
from rl.config.keys import Key, children, find_key, nearest, one_of
from rl.config.section import NameOf, OneOf, Section

UNITS = {
    "lockstep_steps": "engine steps",
    "_s": "seconds",
    "_gib": "GiB",
    "_mib": "MiB",
    "_tokens": "tokens",
    "_steps": "optimiser steps",
    "every": "optimiser steps",
    "window": "optimiser steps",
}
"""By the ending of a key's name; the first match counts."""
TEXT_WIDTH = 90


def explain(key: str = "") -> str:
    """The meaning of a dotted key as text for a terminal; the empty key lists the top level of the tree.

    An environment's name may be written out or as `*`. Raises `ConfigError`, which names the nearest known keys.
    """
    found = find_key(tuple(key.split(".")) if key else ())
    if found is None:
        near = nearest(key)
        fix = f"did you mean {' or '.join(near)}?" if near else "`python -m rl explain` lists the sections"
        raise ConfigError([Problem("", key, "there is no such key", fix)])
    return _explain_section(found) if found.sections else _explain_value(found)


def type_text(field: FieldInfo) -> str:
    """The values that a field accepts, in words: `whole number, more than 0`."""
    return _type_words(field.annotation, field.metadata)


def _type_words(annotation: object, metadata: Sequence[object] = ()) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    for extra in metadata:
        if isinstance(extra, OneOf):
            return f"a section with {extra.key}: {' or '.join(extra.kinds)}"
        if isinstance(extra, NameOf):
            return "one of " + ", ".join(extra.names)
    if origin is typing.Annotated:
        inner = [part for extra in arguments[1:] for part in getattr(extra, "metadata", [extra])]
        return _type_words(arguments[0], [*inner, *metadata])
    if origin is Literal:
        return "one of " + ", ".join(str(choice) for choice in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join("null" if part is type(None) else _type_words(part, metadata) for part in arguments)
    if origin is tuple:
        return f"list of {_type_words(arguments[0])}"
    names = {int: "whole number", float: "number", bool: "true or false", str: "text"}
    name = names.get(annotation) or ("mapping" if origin is dict or annotation is dict else "path")
    if isinstance(annotation, type) and issubclass(annotation, Section):
        name = "section"
    return ", ".join([name, *filter(None, map(_constraint_words, metadata))])


def _constraint_words(constraint: object) -> str:
    words = {
        annotated_types.Gt: ("gt", "more than"),
        annotated_types.Ge: ("ge", "at least"),
        annotated_types.Lt: ("lt", "less than"),
        annotated_types.Le: ("le", "at most"),
        annotated_types.MinLen: ("min_length", "entries at least"),
    }
    for kind, (attribute, text) in words.items():
        if isinstance(constraint, kind):
            return f"{text} {getattr(constraint, attribute)}"
    pattern = getattr(constraint, "pattern", None)
    return f"matching {pattern}" if pattern else ""


def unit_of(name: str) -> str:
    """The unit of a key, from the ending of its name; empty for a number without one."""
    return next((unit for suffix, unit in UNITS.items() if name.endswith(suffix)), "")


def default_lines(key: Key) -> list[str]:
    """The default of a key, and after it those of other kinds of policies, with their sources."""
    assert key.field is not None
    lines = [default_words(key.field)]
    if other := CHECKPOINT_DEFAULTS.get(key.name):
        lines.append(f"{other.value} for a pretrained checkpoint ({other.source})")
    if other := ADAPTER_RATES.get(key.name):
        lines.append(f"{other.value} for an adapter of one ({other.source})")
    return lines


def default_words(field: FieldInfo) -> str:
    """The default of a field as it may be written in YAML, or in words."""
    default = field.get_default(call_default_factory=True)
    if default is PydanticUndefined:
        return "none; it must be given"
    if isinstance(default, Section):
        return "its keys' own defaults"
    is_plain = not isinstance(default, str) or default.isprintable()
    if default is None or isinstance(default, bool | dict | list | tuple) or not is_plain:
        return json.dumps(default, default=lambda section: section.model_dump(mode="json"))
    return str(default)


def _explain_value(key: Key) -> str:
    assert key.field is not None
    lines = [key.name, f"  {one_line(key.field.description or '')}", f"  type:    {type_text(key.field)}"]
    if unit := unit_of(key.name):
        lines.append(f"  unit:    {unit}")
    first, *others = default_lines(key)
    lines += [f"  default: {first}", *(f"           {other}" for other in others)]
    below = [f"{key.name}.{name.name}" for name in children(key)]
    if below:
        lines.append(f"  below:   {', '.join(below)} (`python -m rl explain {below[0]}`)")
    return "\n".join(lines)


def _explain_section(key: Key) -> str:
    lines = [key.name or "the whole configuration"]
    if kind := one_of(key.field):
        lines += [f"  {kind.key}: {name:<12} {one_line(one.__doc__ or '')}" for name, one in kind.kinds.items()]
    else:
        lines.append(f"  {one_line(key.sections[0].__doc__ or '')}")
    if key.field is not None and key.field.description:
        lines.append(f"  {one_line(key.field.description)}")
    if key.field is not None and key.is_list:
        lines.append(f"  type:    {type_text(key.field)}")
    if key.field is not None:
        lines.append(f"  default: {default_words(key.field)}")
    width = max(len(name) for name in key.fields)
    for below in children(key):
        assert below.field is not None
        text = one_line(below.field.description or (below.sections[0].__doc__ if below.sections else "") or "")
        text = textwrap.shorten(text.split(". ")[0].rstrip("."), TEXT_WIDTH, placeholder=" ...")
        owners = owning_kinds(kind, below.name)
        owned = f" ({', '.join(owners)} only)" if owners else ""
        defaults = "; ".join([default_words(below.field), *other_defaults(kind, below.name)])
        lines.append(f"  {below.name:<{width}}  {text}{owned} [{defaults}]")
    return "\n".join(lines)


def owning_kinds(kind: OneOf | None, name: str) -> list[str]:
    """The kinds of a section that have this key, if not all have it."""
    owners = [kind_name for kind_name, one in kind.kinds.items() if name in one.model_fields] if kind else []
    return owners if kind and len(owners) < len(kind.kinds) else []


def other_defaults(kind: OneOf | None, name: str) -> list[str]:
    """The defaults that a key has in some kinds of a section and not in the first kind that has it, in words."""
    if kind is None or name == kind.key:
        return []
    kinds_of: dict[str, list[str]] = {}
    for kind_name, one in kind.kinds.items():
        if name in one.model_fields:
            kinds_of.setdefault(default_words(one.model_fields[name]), []).append(kind_name)
    return [f"{default} for {', '.join(kinds)}" for default, kinds in list(kinds_of.items())[1:]]


def one_line(text: str) -> str:
    """A docstring without its line breaks."""
    return " ".join(text.split())
