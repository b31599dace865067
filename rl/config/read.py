"""How does an experiment's YAML become the configuration tree, and what is said when it cannot?

`rl.config.source` puts files and overrides together; interpolations (`${seed}`, `${oc.env:HOME}`) are resolved after
that. Every mistake found is one `Problem`; all of them are raised together as one `ConfigError`.
"""

import difflib
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException
from pydantic import ValidationError

from rl.config.errors import ConfigError, Problem
from rl.config.experiment import ExperimentConfig, Places
from rl.config.explain import type_text
from rl.config.keys import all_keys, find_key, keys_below, kinds_with, nearest
from rl.config.source import Source, apply_overrides, key_paths, place_of, read_with_base
from rl.config.yaml_text import KeyPath, Tree, dump_yaml

REFERENCE = re.compile(r"\$\{\s*([^${}:\s.\[\]][^${}:\s\[\]]*)\s*\}")
"""`${section.key}`; relative ones and resolvers such as `${oc.env:HOME}` are left out."""


def load_config(
    path: Path, overrides: Sequence[str] = (), unread: Mapping[str, Tree] | None = None
) -> ExperimentConfig:
    """The validated configuration of an experiment file with `key=value` overrides on top.

    `unread` gives top-level sections that the caller does not read, for when nobody writes them. Raises `ConfigError`
    that lists every problem. Whether environments, the policy's folder and data exist is the business of
    `check_references`.
    """
    source = read_with_base(Path(path))
    apply_overrides(source, overrides)
    source.tree = {**(unread or {}), **source.tree}
    return _validate(_resolve(source), source.places, str(path))


def dump_config(config: ExperimentConfig) -> str:
    """The whole resolved tree as YAML; `load_config` of it gives an equal configuration."""
    return dump_yaml(config.model_dump(mode="json"))


def check_references(config: ExperimentConfig) -> None:
    """Check what the configuration names: environments and their options, the policy's folder, the supervised data.

    Environments are imported and made for this. Raises `ConfigError` that lists everything missing.
    """
    problems = [problem for env_id in config.environments if (problem := _environment_problem(config, env_id))]
    path = config.policy.path
    if path is not None and not (path / "config.json").is_file():
        wrong = f"{path} has no config.json" if path.is_dir() else f"there is no folder {path}"
        fix = f"give the folder of a Hugging Face checkpoint; relative paths start at {Path.cwd()}"
        problems.append(Problem(config.place("policy", "path"), "policy.path", wrong, fix))
    if config.sft is not None and config.sft.data is not None and not config.sft.data.exists():
        fix = "give a JSONL file or a `datasets` folder, or leave it out to train on gold conversations"
        problems.append(
            Problem(config.place("sft", "data"), "sft.data", f"there is no file or folder {config.sft.data}", fix)
        )
    if problems:
        raise ConfigError(problems)


def _environment_problem(config: ExperimentConfig, env_id: str) -> Problem | None:
    # Imported here because a configuration can be read where no environment is installed.
    from envs.registry import UnknownEnvironmentError, environment_ids
    from envs.session import Deadlines, EnvFailure, Session
    from envs.text_env import EnvironmentOptionError

    key, place = f"environments.{env_id}", config.place("environments", env_id)
    try:
        with Session.installed(env_id, Deadlines(reset_s=config.rollout.reset_timeout_s)) as session:
            session.read_options(config.environments[env_id].options)
    except EnvFailure as failure:
        if isinstance(failure.error, UnknownEnvironmentError):
            known = environment_ids()
            near = difflib.get_close_matches(env_id, known, n=1, cutoff=0.5)
            fix = f"write {near[0]}" if near else "install the package it comes from"
            return Problem(place, key, str(failure), f"{fix}; installed environments: {', '.join(known) or 'none'}")
        if isinstance(failure.error, EnvironmentOptionError):
            place = config.place("environments", env_id, "options")
            fix = "write the environment's own option, or leave it out"
            return Problem(place, f"{key}.options", str(failure.error), fix)
        fix = "mend the package it comes from, or leave the environment out"
        return Problem(place, key, str(failure), fix)
    return None


def _resolve(source: Source) -> Tree:
    problems: list[Problem] = []

    def plain(node: Any, path: KeyPath) -> Any:
        if isinstance(node, DictConfig):
            return {key: plain_item(node, key, (*path, str(key))) for key in list(node)}
        if isinstance(node, ListConfig):
            return [plain_item(node, index, (*path, str(index))) for index in range(len(node))]
        return node

    def plain_item(node: Any, key: Any, path: KeyPath) -> Any:
        try:
            return plain(node[key], path)
        except OmegaConfBaseException as error:
            place = place_of(source.places, path, "")
            problems.append(_interpolation_problem(place, path, error, source.tree))
            return None

    try:
        resolved = plain(OmegaConf.create(source.tree), ())
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or ""
        path = tuple(key.split("."))
        fix = "write interpolations as ${section.key} or ${oc.env:NAME}; a literal one as \\${"
        problems.append(Problem(place_of(source.places, path, ""), key, f"cannot be read: {_first_line(error)}", fix))
        resolved = {}
    if problems:
        raise ConfigError(problems)
    return resolved


def _interpolation_problem(place: str, path: KeyPath, error: Exception, tree: Tree) -> Problem:
    key = ".".join(path)
    raw: Any = tree
    for name in path:
        raw = raw[int(name)] if isinstance(raw, list) else raw[name]
    if isinstance(error, InterpolationKeyError) and (missing := _missing(raw, tree)):
        near = difflib.get_close_matches(missing, [".".join(path) for path in key_paths(tree)], n=1, cutoff=0.5)
        fix = f"did you mean ${{{near[0]}}}? " if near else ""
        default = ", which is a default: write its value here" if missing in all_keys() else ""
        fix += "Only keys that the YAML, its base or an override gives can be referred to"
        return Problem(place, key, f"{raw!r} refers to {missing}, which is not given{default}", fix)
    fix = "write interpolations as ${section.key} or ${oc.env:NAME}"
    return Problem(place, key, f"{raw!r} cannot be resolved: {_first_line(error)}", fix)


def _missing(raw: Any, tree: Tree, followed: frozenset[str] = frozenset()) -> str:
    """The first key that `raw` refers to, or what that refers to, and that the tree does not have; empty for none."""
    for name in REFERENCE.findall(raw) if isinstance(raw, str) else ():
        value: Any = tree
        for part in name.split("."):
            if not isinstance(value, Mapping) or part not in value:
                return name
            value = value[part]
        if name not in followed and (missing := _missing(value, tree, followed | {name})):
            return missing
    return ""


def _first_line(error: Exception) -> str:
    return str(error).split("\n")[0]


def _validate(tree: Tree, places: Mapping[KeyPath, str], file: str) -> ExperimentConfig:
    try:
        config = ExperimentConfig.model_validate(tree)
        config._places = Places(places)
        return config
    except ValidationError as error:
        problems = []
        for detail in error.errors():
            path = tuple(str(part) for part in detail["loc"] if part != "[key]")
            place = file if detail["type"] == "missing" else place_of(places, path, file)
            wrong, fix = _in_words(detail, path)
            problems.append(Problem(place, ".".join(path), wrong, fix))
        raise ConfigError(problems) from None


def _in_words(detail: Mapping[str, Any], path: KeyPath) -> tuple[str, str]:
    """What is wrong and the fix, for one of pydantic's errors."""
    key, value, kind = ".".join(path), detail["input"], detail["type"]
    explain = f"`python -m rl explain {key}`" if key else "`python -m rl explain`"
    if kind == "extra_forbidden" and (owners := kinds_with(path)):
        chosen = f"{'.'.join(path[:-1])} of the kind that is chosen"
        return f"{chosen} has no such key", f"take it out, or choose {' or '.join(owners)}, which has it"
    if kind == "extra_forbidden":
        near = nearest(key)
        meant = f"did you mean {' or '.join(near)}? " if near else ""
        return "there is no such key", f"{meant}Keys here: {', '.join(keys_below(path[:-1]))}"
    known = find_key(path)
    meaning = type_text(known.field) if known and known.field else "a section"
    if kind == "missing":
        return f"is missing and has no default; it takes: {meaning}", f"add it; {explain} says what it means"
    if kind == "value_error":
        return str(detail["ctx"]["error"]), f"change the keys named; {explain} says what they mean"
    if kind in ("unknown_kind", "unknown_name"):
        names = str(detail["ctx"].get("kinds") or detail["ctx"].get("names")).split(", ")
        given = value.get(str(detail["ctx"].get("key")), "") if isinstance(value, Mapping) else value
        near = difflib.get_close_matches(str(given), names, n=1, cutoff=0.5)
        meant = f"did you mean {near[0]}? " if near else ""
        return f"{_shown(value)} does not fit; it takes: {meaning}", f"{meant}{explain} says more"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        below = ", ".join(keys_below(path))
        return f"{_shown(value)} is not a section of keys", f"write keys below it ({below}), or leave it out"
    return f"{_shown(value)} does not fit; it takes: {meaning}", f"give such a value; {explain} says more"


def _shown(value: Any) -> str:
    text = (
        dump_yaml({"value": value}).removeprefix("value: ").strip()
        if not isinstance(value, dict | list)
        else str(value)
    )
    return textwrap.shorten(text, 60, placeholder=" ...")
