"""What does a configuration key mean, and which known key is nearest to a misspelt one?

Everything said here is read from `rl.config.experiment`: attribute docstrings, types, constraints and defaults.
"""

import difflib
import json
import textwrap
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import annotated_types
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from rl.config.errors import ConfigError, Problem
from rl.config.experiment import ExperimentConfig
from rl.config.section import NameOf, OneOf, Section

ANY_NAME = "*"
"""Stands for a name that the user chooses, such as an environment id."""
UNITS = {
    "lockstep_steps": "engine steps",
    "_s": "seconds",
    "_gib": "GiB",
    "_mib": "MiB",
    "_tokens": "tokens",
    "_steps": "optimiser steps",
    "every": "optimiser steps",
}
"""By the end of a key's name; the first that fits."""
TEXT_WIDTH = 90


@dataclass(frozen=True, slots=True)
class Key:
    """One key of the tree. `sections` is what may lie below it: none for a value, several where a kind is chosen."""

    name: str
    field: FieldInfo | None
    sections: tuple[type[Section], ...] = ()

    @property
    def is_list(self) -> bool:
        """Whether it holds a list of sections."""
        return self.field is not None and bool(self.sections) and typing.get_origin(self.field.annotation) is tuple

    @property
    def fields(self) -> dict[str, FieldInfo]:
        """The keys below, of all kinds together."""
        return {name: field for section in reversed(self.sections) for name, field in section.model_fields.items()}


def explain(key: str = "") -> str:
    """What the dotted key means, as text for a terminal; the empty key lists the whole tree's top level.

    The name of an environment may be written out or as `*`. Raises `ConfigError` naming the nearest known keys.
    """
    found = find_key(tuple(key.split(".")) if key else ())
    if found is None:
        near = nearest(key)
        fix = f"did you mean {' or '.join(near)}?" if near else "`python -m rl explain` lists the sections"
        raise ConfigError([Problem("", key, "there is no such key", fix)])
    return _explain_section(found) if found.sections else _explain_value(found)


def find_key(path: Sequence[str]) -> Key | None:
    """The key at this path from the root, or None. Any name is found where the user chooses the names.

    In a list, a number stands for the entry.
    """
    here = Key("", None, (ExperimentConfig,))
    for depth, name in enumerate(path):
        if name.isdigit() and here.field is not None and here.is_list:
            entry = FieldInfo.from_annotation(typing.get_args(here.field.annotation)[0])
            here = Key(".".join(path[: depth + 1]), entry, here.sections)
            continue
        below = {key.name: key for key in _keys_below(here)}
        if name not in below and ANY_NAME not in below:
            return None
        entry = below.get(name) or below[ANY_NAME]
        here = Key(".".join(path[: depth + 1]), entry.field, entry.sections)
    return here


def keys_below(path: Sequence[str]) -> list[str]:
    """The names that may stand under this path."""
    here = find_key(path)
    return [key.name for key in _keys_below(here)] if here else []


def all_keys() -> list[str]:
    """Every dotted key of the tree, sections included."""

    def walk(prefix: str, key: Key) -> Iterator[str]:
        for below in _keys_below(key):
            yield prefix + below.name
            yield from walk(f"{prefix}{below.name}.", below)

    return list(walk("", Key("", None, (ExperimentConfig,))))


def nearest(key: str) -> list[str]:
    """Up to three known dotted keys that `key` may have meant: spelt alike, or with the same last name elsewhere."""
    known = all_keys()
    last = key.rpartition(".")[2]
    parent = key.rpartition(".")[0]
    names = keys_below(parent.split(".") if parent else ())
    siblings = [
        f"{parent}.{name}" if parent else name for name in difflib.get_close_matches(last, names, n=1, cutoff=0.6)
    ]
    elsewhere = [other for other in known if other.rpartition(".")[2] == last]
    alike = difflib.get_close_matches(key, known, n=1, cutoff=0.7)
    return list(dict.fromkeys(elsewhere[:3] or siblings or alike))


def type_text(field: FieldInfo) -> str:
    """What may be written for a field, in words: `whole number, more than 0`."""
    return _type_words(field.annotation, field.metadata)


def kinds_with(path: Sequence[str]) -> list[str]:
    """The kinds of the section above that have this key; empty where no kind is chosen."""
    above = find_key(path[:-1])
    if above is None or len(above.sections) < 2 or (kind := _one_of(above.field)) is None:
        return []
    return [name for name, section in kind.kinds.items() if path[-1] in section.model_fields]


def _keys_below(key: Key) -> list[Key]:
    if not key.sections:
        if key.field is not None and (inner := _dict_of_sections(key.field.annotation)):
            return [Key(ANY_NAME, None, (inner,))]
        return []
    kind = _one_of(key.field)
    return [
        _kind_key(kind) if kind and name == kind.key else Key(name, field, _sections_in(field))
        for name, field in key.fields.items()
    ]


def _kind_key(kind: OneOf) -> Key:
    """The key that chooses the kind. Each kind's own field knows that one name only."""
    meaning = "Which kind it is; a name alone in place of the section is short for this key."
    field = FieldInfo(annotation=str, default=kind.default, description=meaning)
    field.metadata = [NameOf(kind.kinds)]
    return Key(kind.key, field)


def _sections_in(field: FieldInfo) -> tuple[type[Section], ...]:
    if kind := _one_of(field):
        return tuple(kind.kinds.values())
    for candidate in (field.annotation, *typing.get_args(field.annotation)):
        if isinstance(candidate, type) and issubclass(candidate, Section):
            return (candidate,) if typing.get_origin(field.annotation) is not dict else ()
    return ()


def _one_of(field: FieldInfo | None) -> OneOf | None:
    """The choice of kinds that the field is annotated with, also inside of `X | None` and of a tuple."""
    if field is None:
        return None
    extras = [extra for part in typing.get_args(field.annotation) for extra in getattr(part, "__metadata__", ())]
    return next((extra for extra in (*field.metadata, *extras) if isinstance(extra, OneOf)), None)


def _dict_of_sections(annotation: Any) -> type[Section] | None:
    if typing.get_origin(annotation) is dict:
        inner = typing.get_args(annotation)[1]
        return inner if isinstance(inner, type) and issubclass(inner, Section) else None
    return None


def _type_words(annotation: Any, metadata: Sequence[Any] = ()) -> str:
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
        words = [_type_words(part, metadata) for part in arguments if part is not type(None)]
        return " or ".join([*words, "null"])
    if origin is tuple:
        return f"list of {_type_words(arguments[0])}"
    names = {int: "whole number", float: "number", bool: "true or false", str: "text"}
    name = names.get(annotation) or ("mapping" if origin is dict or annotation is dict else "path")
    if isinstance(annotation, type) and issubclass(annotation, Section):
        name = "section"
    return ", ".join([name, *filter(None, map(_constraint_words, metadata))])


def _constraint_words(constraint: Any) -> str:
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


def _default_words(field: FieldInfo) -> str:
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
    lines = [key.name, f"  {_one_line(key.field.description or '')}", f"  type:    {type_text(key.field)}"]
    unit = next((unit for suffix, unit in UNITS.items() if key.name.endswith(suffix)), None)
    if unit:
        lines.append(f"  unit:    {unit}")
    lines.append(f"  default: {_default_words(key.field)}")
    below = [f"{key.name}.{name.name}" for name in _keys_below(key)]
    if below:
        lines.append(f"  below:   {', '.join(below)} (`python -m rl explain {below[0]}`)")
    return "\n".join(lines)


def _explain_section(key: Key) -> str:
    lines = [key.name or "the whole configuration"]
    if kind := _one_of(key.field):
        lines += [f"  {kind.key}: {name:<12} {_one_line(one.__doc__ or '')}" for name, one in kind.kinds.items()]
    else:
        lines.append(f"  {_one_line(key.sections[0].__doc__ or '')}")
    if key.field is not None and key.field.description:
        lines.append(f"  {_one_line(key.field.description)}")
    if key.field is not None and key.is_list:
        lines.append(f"  type:    {type_text(key.field)}")
    if key.field is not None:
        lines.append(f"  default: {_default_words(key.field)}")
    width = max(len(name) for name in key.fields)
    for below in _keys_below(key):
        assert below.field is not None
        text = _one_line(below.field.description or (below.sections[0].__doc__ if below.sections else "") or "")
        text = textwrap.shorten(text.split(". ")[0].rstrip("."), TEXT_WIDTH, placeholder=" ...")
        owners = [name for name, one in kind.kinds.items() if below.name in one.model_fields] if kind else []
        owned = f" ({', '.join(owners)} only)" if kind and len(owners) < len(kind.kinds) else ""
        lines.append(f"  {below.name:<{width}}  {text}{owned} [{_default_words(below.field)}]")
    return "\n".join(lines)


def _one_line(text: str) -> str:
    return " ".join(text.split())
