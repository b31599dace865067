"""Which stages does a recipe have, in which order, and from what does each start? The YAML of `python -m rl chain`.

A stage is a command of `rl` or `sft` in a folder of its own. It starts from the policy of a stage before it, and its
keys may refer to the results of such stages: `judge.path: ${stages.genrm}`.
"""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from rl.config.chain_stage import COMMANDS, ROWS, TRAIN, Stage
from rl.config.errors import ConfigError, Problem
from rl.config.mixture import RowChoice
from rl.config.section import DataPath, NameOf, Positive, Section
from rl.config.source import Source, apply_overrides, file_of, place_of, read_with_base

REFERENCE = re.compile(r"\$\{\s*stages\.([^${}]*?)\s*\}")
NAME = re.compile(r"[A-Za-z0-9][\w-]*")
OWN_FOLDERS = ("figures",)
"""What the chain's folder holds beside the folders of its stages."""


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
    """The experiment's YAML, relative to the file that says so; null is that of the chain."""
    start: str | None = Field(None, alias="from")
    """The stage that it starts from; by default the last one before it that made a policy. null: the YAML's policy."""
    values: dict[str, Any] = Field(default_factory=dict, alias="set")
    """Keys of the experiment, as overrides of its YAML; of rows from rollouts, the command's options."""


class ChainConfig(Section):
    """A chain of stages."""

    run_dir: DataPath
    """Folder that receives a folder for each stage, and the report."""
    yaml: DataPath | None = None
    """The experiment's YAML of stages that name none, relative to the file that says so."""
    values: dict[str, Any] = Field(default_factory=dict, alias="set")
    """Keys of the experiments of all stages, as overrides; those of a stage come after them."""
    stages: dict[str, StageConfig] = Field(min_length=1)
    """The stages by name, in their order."""


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
            stages[name] = _stage(chain, name, config, _yaml_of(name, chain, source, path), stages)
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


def _yaml_of(name: str, chain: ChainConfig, source: Source, file: Path) -> Path | None:
    """The stage's YAML, whose path is relative to the file that gives it: the chain's, or its base."""
    own = chain.stages[name].yaml
    yaml, key = (own, ("stages", name, "yaml")) if own is not None else (chain.yaml, ("yaml",))
    given_by = file_of(place_of(source.places, key, str(file))) or file
    return None if yaml is None else given_by.parent / yaml


def _stage(chain: ChainConfig, name: str, config: StageConfig, yaml: Path | None, before: Mapping[str, Stage]) -> Stage:
    if not NAME.fullmatch(name) or name in OWN_FOLDERS:
        raise _WrongError(
            f"{name!r} cannot be the name of a stage's folder", f"use letters, digits, - and _; not {OWN_FOLDERS[0]}"
        )
    source = _source(chain, name, config, before)
    folder, given = chain.run_dir / name, config.values
    if config.command == ROWS:
        _check_options(given)
        return Stage(name, config.command, folder, None, source, tuple(given.items()))
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
    return Stage(name, config.command, folder, yaml, source, values, references)


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
