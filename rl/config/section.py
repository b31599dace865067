"""What is a configuration section, and how is a section of one of several kinds (a discriminated union) read?

A seam (algorithm, number format, sink, ...) has a dict of implementations. Each implementation is a section: one file
holds its keys and its code. `OneOf` reads the section of the kind that the YAML names. It looks up the dict when a
configuration is read, so a new kind needs only an entry in the dict.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializationInfo, ValidationInfo, field_validator
from pydantic_core import CoreSchema, PydanticCustomError, core_schema


def _named(value: object) -> object:
    if value == "":
        raise PydanticCustomError("empty_path", "an empty path, which would be the current folder")
    return value


DataPath = Annotated[Path, BeforeValidator(_named)]
"""A path that is not empty."""
Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_value_for_a_number(cls, value: object, info: ValidationInfo) -> object:
        annotation = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and bool not in (annotation, *get_args(annotation)):
            raise ValueError(f"{str(value).lower()} is a truth value, which this key does not accept")
        return value


@dataclass(frozen=True, slots=True, eq=False)
class OneOf:
    """Annotates a field that holds a section of one of `kinds`. The section's key `key` names the kind.

    A string in place of the section is short for `{key: string}`. Without the key, the kind is `default`.
    """

    kinds: Mapping[str, type[Section]]
    key: str
    default: str

    def read(self, value: object) -> Section:
        """The section for a value from the YAML. Raises `ValidationError`, whose locations are inside the section."""
        if isinstance(value, Section):
            return value
        tree = {self.key: value} if isinstance(value, str) else value
        if not isinstance(tree, Mapping):
            raise PydanticCustomError("dict_type", "not a section of keys")
        kind = tree.get(self.key, self.default)
        if not isinstance(kind, str) or kind not in self.kinds:
            raise PydanticCustomError(
                "unknown_kind", "{key} is not one of {kinds}", {"key": self.key, "kinds": ", ".join(self.kinds)}
            )
        return self.kinds[kind].model_validate({**tree, self.key: kind})

    def __get_pydantic_core_schema__(self, source: object, handler: Callable[[object], CoreSchema]) -> CoreSchema:
        def dump(value: Section, info: SerializationInfo) -> dict[str, object]:
            return value.model_dump(mode=info.mode)

        written = core_schema.plain_serializer_function_ser_schema(dump, info_arg=True)
        return core_schema.no_info_plain_validator_function(self.read, serialization=written)


@dataclass(frozen=True, slots=True, eq=False)
class NameOf:
    """Annotates a string field whose value must be one of the names in a dict."""

    names: Mapping[str, object]

    def read(self, value: object) -> str:
        if not isinstance(value, str) or value not in self.names:
            raise PydanticCustomError("unknown_name", "not one of {names}", {"names": ", ".join(self.names)})
        return value

    def __get_pydantic_core_schema__(self, source: object, handler: Callable[[object], CoreSchema]) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.read)


K = TypeVar("K")
V = TypeVar("V")


class Aside(dict[K, V]):
    """What is known about the keys of a configuration. All compare equal: equality of configurations ignores it."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Aside)

    __hash__ = None  # type: ignore[assignment]
