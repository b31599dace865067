"""Which configuration keys are there, and which known key is nearest to a misspelt one?

All of it is read from the sections themselves, of all kinds where a kind is chosen.
"""

import difflib
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pydantic.fields import FieldInfo

from rl.config.aliases import counterparts
from rl.config.experiment import ExperimentConfig
from rl.config.section import NameOf, OneOf, Section

ANY_NAME = "*"
"""Stands for a name that the user chooses, such as an environment id."""


@dataclass(frozen=True, slots=True)
class Key:
    """One key of the tree. `sections` may be below it: none for a value, several if the key selects a kind."""

    name: str
    field: FieldInfo | None
    sections: tuple[type[Section], ...] = ()

    @property
    def is_list(self) -> bool:
        """Whether the key holds a list of sections."""
        return bool(self.sections) and _list_type(self.field) is not None

    @property
    def fields(self) -> dict[str, FieldInfo]:
        """The keys below this one, of all kinds."""
        return {name: field for section in reversed(self.sections) for name, field in section.model_fields.items()}


def find_key(path: Sequence[str]) -> Key | None:
    """The key at this path from the root, or None. If the user chooses the names, any name is found.

    In a list, a number selects the entry.
    """
    here = Key("", None, (ExperimentConfig,))
    for depth, name in enumerate(path):
        if name.isdigit() and here.field is not None and here.is_list:
            entry = FieldInfo.from_annotation(typing.get_args(_list_type(here.field))[0])
            here = Key(".".join(path[: depth + 1]), entry, here.sections)
            continue
        below = {key.name: key for key in children(here)}
        if name not in below and ANY_NAME not in below:
            return None
        entry = below.get(name) or below[ANY_NAME]
        here = Key(".".join(path[: depth + 1]), entry.field, entry.sections)
    return here


def keys_below(path: Sequence[str]) -> list[str]:
    """The names that may stand under this path."""
    here = find_key(path)
    return [key.name for key in children(here)] if here else []


def all_keys() -> list[str]:
    """Every dotted key of the tree, sections included."""

    def walk(prefix: str, key: Key) -> Iterator[str]:
        for below in children(key):
            yield prefix + below.name
            yield from walk(f"{prefix}{below.name}.", below)

    return list(walk("", Key("", None, (ExperimentConfig,))))


def nearest(key: str) -> list[str]:
    """Up to three known dotted keys that may be meant by `key`: what other projects call so, the same last name in
    another section, or a similar spelling."""
    if meant := counterparts(key):
        return meant
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


def kinds_with(path: Sequence[str]) -> list[str]:
    """The kinds of the section above that have this key; empty if that section has only one kind."""
    above = find_key(path[:-1])
    if above is None or len(above.sections) < 2 or (kind := one_of(above.field)) is None:
        return []
    return [name for name, section in kind.kinds.items() if path[-1] in section.model_fields]


def children(key: Key) -> list[Key]:
    if not key.sections:
        if key.field is not None and (inner := _dict_of_sections(key.field.annotation)):
            return [Key(ANY_NAME, None, (inner,))]
        return []
    kind = one_of(key.field)
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
    if kind := one_of(field):
        return tuple(kind.kinds.values())
    for candidate in (field.annotation, *typing.get_args(field.annotation), *typing.get_args(_list_type(field))):
        if isinstance(candidate, type) and issubclass(candidate, Section):
            return (candidate,) if typing.get_origin(field.annotation) is not dict else ()
    return ()


def _list_type(field: FieldInfo | None) -> object:
    """The type of a list that the field holds, perhaps beside other types; None if it holds none."""
    annotation = None if field is None else field.annotation
    parts = (annotation, *typing.get_args(annotation))
    return next((part for part in parts if typing.get_origin(part) is tuple), None)


def one_of(field: FieldInfo | None) -> OneOf | None:
    """The `OneOf` that annotates the field, also inside `X | None` and inside a tuple."""
    if field is None:
        return None
    extras = [extra for part in typing.get_args(field.annotation) for extra in getattr(part, "__metadata__", ())]
    return next((extra for extra in (*field.metadata, *extras) if isinstance(extra, OneOf)), None)


def _dict_of_sections(annotation: object) -> type[Section] | None:
    if typing.get_origin(annotation) is dict:
        inner = typing.get_args(annotation)[1]
        return inner if isinstance(inner, type) and issubclass(inner, Section) else None
    return None
