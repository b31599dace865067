"""Which sources does the supervised stage mix (`sft.data`), and how much of each is trained?"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SerializationInfo, TypeAdapter, model_validator
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from rl.config.section import DataPath, Positive, Section

RowChoice = Literal["shortest", "diverse"]
"""Which of a task's good rollouts become rows."""
OWN_KEYS = {"path": ("split", "subset"), "gold": (), "rollouts": ("reward_min", "per_task", "choose")}
"""By the kind of a source: the keys that no other kind has."""


class SourceConfig(Section):
    """One source of `sft.data`: exactly one of `path`, `gold` and `rollouts`, with `weight`, `epochs`, or both."""

    path: DataPath | None = None
    """Conversations of yours, as `sft.data` may name them alone."""
    split: str = "train"
    """Split of that data set or folder."""
    subset: str | None = None
    """Subset of a data set of the hub that has several."""
    gold: bool = False
    """Gold conversations of the YAML's `environments`, `sft.num_conversations` of them."""
    rollouts: DataPath | None = None
    """Run folder or file of rollouts; its good ones are rows, as `python -m sft from-rollouts` writes them."""
    reward_min: float = 1.0
    """Lowest reward of a rollout that is taken."""
    per_task: Positive = 1
    """Rollouts taken of a task at most."""
    choose: RowChoice = "shortest"
    """Which of a task's good rollouts are taken."""
    weight: Annotated[float, Field(gt=0)] | None = None
    """Its share of each step's conversations, relative to the other sources' weights. Steps first have room for what
    sources with `epochs` alone give."""
    epochs: Annotated[float, Field(gt=0)] | None = None
    """How often each of its conversations is trained in the whole stage; with `weight` too, how often at most."""
    effort: Annotated[str, Field(pattern=r"^[\w-]+$")] | None = None
    """Reasoning effort that its conversations with reasoning state, such as `efficient`: their last user message ends
    with `{reasoning effort: efficient}`. A row's own key `effort` counts more."""

    @property
    def name(self) -> str:
        """For people."""
        if self.gold:
            return "gold conversations"
        if self.rollouts is not None:
            return f"rollouts of {self.rollouts}"
        more = [self.subset, *([f"split {self.split}"] if self.split != "train" else [])]
        return f"{self.path}" + "".join(f", {word}" for word in more if word)

    @model_validator(mode="after")
    def _says_what_and_how_much(self) -> "SourceConfig":
        given = [name for name in OWN_KEYS if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(
                f"a source has exactly one of path, gold and rollouts, this one has {' and '.join(given) or 'none'}"
            )
        for kind, names in OWN_KEYS.items():
            foreign = [name for name in names if getattr(self, name) != type(self).model_fields[name].default]
            if kind not in given and foreign:
                raise ValueError(
                    f"{' and '.join(foreign)} would change nothing of the source {self.name}, as only a source with"
                    f" {kind} has such keys: remove {'it' if len(foreign) == 1 else 'them'}"
                )
        if self.weight is None and self.epochs is None:
            raise ValueError(f"the source {self.name} has neither weight nor epochs, so how much of it is not said")
        return self


class PathOrSources:
    """Annotates a field that holds one path, or a list of sources: which of the two is told by the type."""

    def read(self, value: object) -> Path | tuple[SourceConfig, ...] | None:
        """Raises `ValidationError`, whose locations begin with the place in the list."""
        if value is None or isinstance(value, Path):
            return value
        if isinstance(value, str) and value:
            return Path(value)
        if not isinstance(value, list | tuple):
            raise PydanticCustomError("path_or_sources", "neither a path nor a list of sources")
        return _SOURCES.validate_python(value)

    def __get_pydantic_core_schema__(self, source: object, handler: object) -> CoreSchema:
        def dump(value: object, info: SerializationInfo) -> object:
            if isinstance(value, tuple):
                return [one.model_dump(mode=info.mode) for one in value]
            return str(value) if isinstance(value, Path) and info.mode == "json" else value

        written = core_schema.plain_serializer_function_ser_schema(dump, info_arg=True)
        return core_schema.no_info_plain_validator_function(self.read, serialization=written)


_SOURCES = TypeAdapter(tuple[SourceConfig, ...])
