"""Which stages does a recipe have, in which order, and from what does each start? The YAML of `python -m rl chain`.

A stage is a command of `rl` or `sft` in a folder of its own. It starts from the policy of a stage before it, and its
keys may refer to the results of such stages: `judge.path: ${stages.genrm}`.
"""

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, ValidationError

from rl.config.errors import ConfigError, Problem
from rl.config.section import DataPath, NameOf, Positive, Section
from rl.config.source import Source, apply_overrides, place_of, read_with_base
from rl.config.yaml_text import read_value

REFERENCE = re.compile(r"\$\{\s*stages\.([^${}]*?)\s*\}")
NAME = re.compile(r"[A-Za-z0-9][\w-]*")
OWN_FOLDERS = ("figures",)
"""What the chain's folder holds beside the folders of its stages."""
RowChoice = Literal["shortest", "diverse"]
"""Which of a task's good rollouts become rows."""


class Result(NamedTuple):
    """What a command leaves in the folder of its stage."""

    name: str
    is_policy: bool


COMMANDS: Mapping[str, Result] = {
    "rl train": Result("exported", is_policy=True),
    "sft train": Result("sft", is_policy=True),
    "sft dpo": Result("dpo", is_policy=True),
    "sft reward-model": Result("reward_model", is_policy=False),
    "sft from-rollouts": Result("rows.jsonl", is_policy=False),
}
"""The commands that can be a stage."""
TRAIN, SFT, ROWS = "rl train", "sft train", "sft from-rollouts"


class RowsConfig(Section):
    """Options of `python -m sft from-rollouts`; those that are not set have the command's defaults."""

    reward_min: float | None = None
    per_task: Positive | None = None
    choose: RowChoice | None = None
    pairs: bool = False
    margin_min: float | None = None


class StageConfig(Section):
    """One stage of a chain."""

    command: Annotated[str, NameOf(COMMANDS)]
    """What the stage runs: `python -m` and this."""
    yaml: DataPath | None = None
    """The experiment's YAML, relative to the chain's file; null is that of the chain."""
    start: str | None = Field(None, alias="from")
    """The stage that it starts from; by default the last one before it that made a policy. null: the YAML's policy."""
    values: dict[str, Any] = Field(default_factory=dict, alias="set")
    """Keys of the experiment, as overrides of its YAML; of rows from rollouts, the command's options."""


class ChainConfig(Section):
    """A chain of stages."""

    run_dir: DataPath
    """Folder that receives a folder for each stage, and the report."""
    yaml: DataPath | None = None
    """The experiment's YAML of stages that name none, relative to the chain's file."""
    values: dict[str, Any] = Field(default_factory=dict, alias="set")
    """Keys of the experiments of all stages, as overrides; those of a stage come after them."""
    stages: dict[str, StageConfig] = Field(min_length=1)
    """The stages by name, in their order."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage, with what it takes from others."""

    name: str
    command: str
    folder: Path
    yaml: Path | None
    """None of rows from rollouts."""
    source: "Stage | None"
    """The stage that it starts from; None starts from the policy of the YAML."""
    values: Sequence[tuple[str, Any]]
    """Keys and their values in the order of overrides, with paths in place of references."""
    references: Mapping[str, "Stage"] = field(default_factory=dict)
    """By key, the stage whose result it names."""

    @property
    def result(self) -> Path:
        return self.folder / COMMANDS[self.command].name

    @property
    def sources(self) -> "list[Stage]":
        """All stages whose results it uses."""
        return [stage for stage in (self.source, *self.references.values()) if stage is not None]

    def overrides(self, policy: Path | None = None) -> list[str]:
        """The overrides of its YAML, of the form key=value. `policy` stands in for that of the source."""
        given: dict[str, Any] = {}
        if self.source is not None:
            given = {"policy.build": None, "policy.path": str(policy or self.source.result)}
            if self.command == TRAIN:
                given["sft"] = None  # its supervised stage would begin again from the policy of another stage
        return [f"{key}={_text(value)}" for key, value in (*given.items(), *self.values)] + [
            f"run_dir={_text(str(self.folder))}"
        ]

    @property
    def words(self) -> list[str]:
        """The command that it runs, as words after `python -m`."""
        package, name = self.command.split()
        if self.command == ROWS:
            assert self.source is not None
            flags = [_flag(key, value) for key, value in self.values if value not in (None, False)]
            return [package, name, str(self.source.folder), "--out", str(self.result), *(w for f in flags for w in f)]
        return [package, name, str(self.yaml), *self.overrides()]


def load_chain(path: Path, overrides: Sequence[str] = ()) -> tuple[Path, list[Stage]]:
    """The chain's folder and its stages in order. Raises `ConfigError` with all problems of the chain's own file."""
    source = read_with_base(path)
    apply_overrides(source, overrides)
    try:
        chain = ChainConfig.model_validate(source.tree)
    except ValidationError as error:
        raise ConfigError(list(_problems(error, source, path))) from None
    stages: dict[str, Stage] = {}
    problems: list[Problem] = []
    for name, config in chain.stages.items():
        try:
            stages[name] = _stage(chain, name, config, path, stages)
        except _WrongError as wrong:
            key = ("stages", name, *wrong.key)
            problems.append(Problem(place_of(source.places, key, str(path)), ".".join(key), wrong.what, wrong.fix))
            # Others may refer to it, which is no second mistake.
            stages[name] = Stage(name, config.command, chain.run_dir / name, path, None, ())
    if problems:
        raise ConfigError(problems)
    return chain.run_dir, list(stages.values())


class _WrongError(Exception):
    def __init__(self, what: str, fix: str, *key: str) -> None:
        super().__init__(what)
        self.what, self.fix, self.key = what, fix, key


def _stage(chain: ChainConfig, name: str, config: StageConfig, file: Path, before: Mapping[str, Stage]) -> Stage:
    if not NAME.fullmatch(name) or name in OWN_FOLDERS:
        raise _WrongError(
            f"{name!r} cannot be the name of a stage's folder", f"use letters, digits, - and _; not {OWN_FOLDERS[0]}"
        )
    source = _source(chain, name, config, before)
    folder, given = chain.run_dir / name, config.values
    if config.command == ROWS:
        _check_options(given)
        return Stage(name, config.command, folder, None, source, tuple(given.items()))
    yaml = config.yaml or chain.yaml
    if yaml is None:
        raise _WrongError("the stage has no YAML", "set `yaml` of the stage or of the chain")
    values: list[tuple[str, Any]] = []
    references: dict[str, Stage] = {}
    for key, value in (*chain.values.items(), *given.items()):
        if key == "run_dir":
            raise _WrongError("a stage's folder is in that of the chain", "set `run_dir` of the chain", "set", key)
        named = {key: _named(chain, name, one, before) for key, one in _references(key, value)}
        references = {old: stage for old, stage in references.items() if old != key} | named
        values.append((key, _replaced(value, {stage.name: str(stage.result) for stage in named.values()})))
    return Stage(name, config.command, folder, file.parent / yaml, source, values, references)


def _source(chain: ChainConfig, name: str, config: StageConfig, before: Mapping[str, Stage]) -> Stage | None:
    def fits(stage: Stage) -> bool:
        return stage.command == TRAIN if config.command == ROWS else COMMANDS[stage.command].is_policy

    wanted = "a run of `rl train`" if config.command == ROWS else "a policy"
    if "start" not in config.model_fields_set:
        found = next(filter(fits, reversed(list(before.values()))), None)
    else:
        found = None if config.start is None else _named(chain, name, config.start, before, "from")
        if found is not None and not fits(found):
            raise _WrongError(
                f"stage {found.name} (`{found.command}`) makes no such thing: {wanted} is needed",
                f"name a stage that makes {wanted}",
                "from",
            )
    if found is None and config.command == ROWS:
        raise _WrongError("no stage before it runs `rl train`, whose rollouts become rows", "put one before it")
    return found


def _named(chain: ChainConfig, name: str, other: str, before: Mapping[str, Stage], *key: str) -> Stage:
    """The stage of this name. Raises if it does not come before stage `name`."""
    if other in before:
        return before[other]
    key = key or ("set",)
    if other in chain.stages:
        whose = "itself" if other == name else f"stage {other}, which comes after it"
        fix = "a stage can use what stages before it made: change the order, or name another stage"
        raise _WrongError(f"the stage refers to {whose}", fix, *key)
    near = difflib.get_close_matches(other, list(chain.stages), n=1, cutoff=0.5)
    meant = f"did you mean {near[0]}? " if near else ""
    raise _WrongError(f"there is no stage {other!r}", f"{meant}stages before it: {', '.join(before) or 'none'}", *key)


def _references(key: str, value: object) -> Iterator[tuple[str, str]]:
    """Key and stage of each reference in the value."""
    if isinstance(value, str):
        yield from ((key, found) for found in REFERENCE.findall(value))
    elif isinstance(value, Mapping):
        for name, below in value.items():
            yield from _references(f"{key}.{name}", below)
    elif isinstance(value, list):
        for number, below in enumerate(value):
            yield from _references(f"{key}.{number}", below)


def _replaced(value: Any, results: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return REFERENCE.sub(lambda found: results[found[1]], value)
    if isinstance(value, Mapping):
        return {name: _replaced(below, results) for name, below in value.items()}
    return [_replaced(below, results) for below in value] if isinstance(value, list) else value


def _check_options(given: Mapping[str, Any]) -> None:
    try:
        RowsConfig.model_validate(given)
    except ValidationError as error:
        detail = error.errors()[0]
        key = tuple(map(str, detail["loc"]))
        fix = f"options of `{ROWS}`: {', '.join(RowsConfig.model_fields)}"
        raise _WrongError(f"not an option or no value of it: {detail['msg']}", fix, "set", *key) from None


def _flag(key: str, value: object) -> list[str]:
    flag = f"--{key.replace('_', '-')}"
    return [flag] if value is True else [flag, str(value)]


def _text(value: object) -> str:
    """The value in one line of YAML, which JSON is."""
    is_plain = isinstance(value, str) and re.fullmatch(r"[\w./-]+", value) and read_value(value) == value
    return str(value) if is_plain else json.dumps(value, ensure_ascii=False)


def _problems(error: ValidationError, source: Source, file: Path) -> Iterator[Problem]:
    for detail in error.errors():
        path = tuple(map(str, detail["loc"]))
        is_stage = len(path) > 1 and path[0] == "stages"
        fields = (StageConfig if is_stage else ChainConfig).model_fields
        keys = [one.alias or name for name, one in fields.items()]
        wrong, fix = detail["msg"], f"keys of a {'stage' if is_stage else 'chain'}: {', '.join(keys)}"
        if detail["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(detail["loc"][-1]), keys, n=1)
            wrong, fix = "there is no such key", (f"did you mean {near[0]}? " if near else "") + fix
        elif detail["type"] == "unknown_name":
            near = difflib.get_close_matches(str(detail["input"]), COMMANDS, n=1)
            wrong = f"{detail['input']!r} is no command that can be a stage"
            fix = (f"did you mean {near[0]}? " if near else "") + f"commands: {', '.join(COMMANDS)}"
        elif detail["type"] == "missing":
            wrong = "is missing and has no default"
        yield Problem(place_of(source.places, path, str(file)), ".".join(path), wrong, fix)
