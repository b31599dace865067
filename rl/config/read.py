"""How is an experiment's YAML read into the configuration tree, and how are its errors reported?

`rl.config.source` merges files and overrides; interpolations (`${seed}`, `${oc.env:HOME}`) are resolved after that.
Each error is one `Problem`; one `ConfigError` reports all of them.
"""

import difflib
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException
from pydantic import ValidationError

from rl.config.checkpoint_defaults import with_checkpoint_defaults
from rl.config.checkpoint_files import folder_fault
from rl.config.environments import environment_fix
from rl.config.errors import ConfigError, Problem
from rl.config.experiment import ExperimentConfig
from rl.config.explain import type_text
from rl.config.hub import cached_snapshot, download_command, is_hub_id
from rl.config.keys import ANY_NAME, all_keys, find_key, keys_below, kinds_with, nearest
from rl.config.preferences import PairsConfig, PairStage
from rl.config.section import Aside
from rl.config.source import Source, apply_overrides, key_paths, place_of, read_with_base
from rl.config.supervised import SftConfig, hub_name
from rl.config.yaml_text import KeyPath, Tree, dump_yaml

REFERENCE = re.compile(r"\$\{\s*([^${}:\s.\[\]][^${}:\s\[\]]*)\s*\}")
"""Matches `${section.key}`, but not relative references or resolvers such as `${oc.env:HOME}`."""


Fetch = Callable[[str], Path | None]


def load_config(
    path: Path, overrides: Sequence[str] = (), unread: Mapping[str, Tree] | None = None, *, fetch: Fetch | None = None
) -> ExperimentConfig:
    """The validated configuration of an experiment file with `key=value` overrides on top.

    A pretrained checkpoint has other defaults than a tiny policy (`rl.config.checkpoint_defaults`). `unread` holds
    defaults for keys of sections that the caller does not use. `fetch` gets the folder of a model of the hub that is
    not in the local cache (`rl.config.hub`). Raises `ConfigError`, which lists every problem. `check_references` checks
    that environments, the policy's folder and data exist.
    """
    source = read_with_base(Path(path))
    apply_overrides(source, overrides)
    source.tree = _with_defaults(source.tree, unread or {})
    tree, chosen = with_checkpoint_defaults(_with_snapshot(_resolve(source), fetch))
    config = _validate(tree, source.places, str(path))
    config._chosen = Aside(chosen)
    return config


def _with_defaults(tree: Tree, defaults: Mapping[str, Tree]) -> Tree:
    """The tree with these keys of sections where it has none. `environments` have names for keys: any are enough."""
    sections = {
        name: {**default, **tree[name]}
        for name, default in defaults.items()
        if isinstance(tree.get(name), Mapping) and name != "environments"
    }
    return {**defaults, **tree, **sections}


def dump_config(config: ExperimentConfig) -> str:
    """The whole resolved tree as YAML; `load_config` of it gives an equal configuration."""
    return dump_yaml(config.model_dump(mode="json"))


def check_references(config: ExperimentConfig) -> None:
    """Check that the environments, their options, the policy's folder and the supervised data exist.

    This imports and creates the environments, and lets them read their data. Raises `ConfigError`, which lists
    everything that is missing.
    """
    problems = [problem for env_id in config.environments if (problem := _environment_problem(config, env_id))]
    problems += stage_problems(config)
    if problems:
        raise ConfigError(problems)


def stage_problems(config: ExperimentConfig) -> list[Problem]:
    """What the supervised stage cannot train: files that are missing, and steps that ranks cannot share."""
    problems = [problem] if (problem := policy_problem(config)) else []
    size, num = config.sft.batch_size if config.sft is not None else 0, config.learner.num_ranks
    if num and size % num:  # a run that only plays has no ranks (`rl.apart`)
        text = f"{size} conversations a step cannot be dealt evenly to the {num} ranks of the learner"
        fix = f"choose a multiple of learner.num_ranks, such as {num * -(-size // num)}"
        problems.append(Problem(config.place("sft", "batch_size"), "sft.batch_size", text, fix))
    if config.sft is not None:
        problems += _source_problems(config, "sft", config.sft, ", or remove the key to train on gold conversations")
    return problems


def pair_stage_problems(config: ExperimentConfig, name: PairStage) -> list[Problem]:
    """What a stage on preference pairs cannot train: files that are missing, a random policy, several ranks."""
    problems = [problem] if (problem := policy_problem(config)) else []
    if config.policy.build is not None:
        text, fix = "a random policy has nothing to prefer", "set policy.path to a trained policy, such as RUN/sft"
        problems.append(Problem(config.place("policy", "build"), "policy.build", text, fix))
    if config.learner.num_ranks > 1:
        text, fix = f"the stage of {name} trains as one process", f"set it to 1 for the stage of {name}"
        problems.append(Problem(config.place("learner", "num_ranks"), "learner.num_ranks", text, fix))
    section = config.dpo if name == "dpo" else config.reward_model
    assert section is not None
    return problems + _source_problems(config, name, section)


def _source_problems(
    config: ExperimentConfig, name: str, section: SftConfig | PairsConfig, otherwise: str = ""
) -> list[Problem]:
    """The sources of a stage that are not there. `otherwise` is what else may be done about a path alone."""
    problems = []
    for number, source in enumerate(section.sources):
        keys, fix = (name, "data"), "give a file, a folder or a data set of the hub"
        found = source.path if source.rollouts is None else source.rollouts
        if found is None or found.exists() or (source.rollouts is None and hub_name(found) is not None):
            continue
        if isinstance(section.data, Path):
            fix += otherwise
        else:
            keys = (*keys, str(number), "path" if source.rollouts is None else "rollouts")
            fix = fix if source.rollouts is None else "give a run folder or a file of rollouts, or remove the source"
        problems.append(Problem(config.place(*keys), ".".join(keys), f"there is no file or folder {found}", fix))
    return problems


def policy_problem(config: ExperimentConfig, command: Callable[[str], str] = download_command) -> Problem | None:
    """What is wrong if there is no folder of the policy; `command` downloads what is needed of a model of the hub."""
    path = config.policy.path
    if path is None or (fault := folder_fault(path)) is None:
        return None
    wrong, fix = fault
    if is_hub_id(path):
        wrong += f", and no model {path} in the cache of the Hugging Face hub"
        fix = f"download it with: {command(str(path))}; or {fix}"
    return Problem(config.place("policy", "path"), "policy.path", wrong, fix)


def _environment_problem(config: ExperimentConfig, env_id: str) -> Problem | None:
    # Imported here because a configuration can be read without any environment installed.
    from envs.loading import load_data
    from envs.registry import UnknownEnvironmentError, environment_ids
    from envs.session import Deadlines, EnvFailure, Session
    from envs.text_env import EnvironmentOptionError

    key, place = f"environments.{env_id}", config.place("environments", env_id)
    every_options = config.environments[env_id].every_options
    for options in every_options:
        load_data(env_id, options)
    try:
        with Session.installed(env_id, Deadlines(reset_s=config.rollout.reset_timeout_s)) as session:
            for options in every_options:
                session.read_options(options)
    except EnvFailure as failure:
        if isinstance(failure.error, UnknownEnvironmentError):
            known = environment_ids()
            near = difflib.get_close_matches(env_id, known, n=1, cutoff=0.5)
            fix = f"write {near[0]}" if near else "install the package that provides it"
            return Problem(place, key, str(failure), f"{fix}; installed environments: {', '.join(known) or 'none'}")
        if isinstance(failure.error, EnvironmentOptionError):
            keys = ("environments", env_id, *config.environments[env_id].options_key)
            fix = "use one of the environment's options, or remove the key"
            return Problem(config.place(*keys), ".".join(keys), str(failure.error), fix)
        fix = environment_fix(env_id, failure)
        module, cause = env_id.partition(":")[0], failure.error.__cause__ if failure.error else None
        if isinstance(cause, ModuleNotFoundError) and f"{module}.".startswith(f"{cause.name}."):
            fix = f"run the command in the folder that holds {module.split('.')[0]}.py, or install its package"
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
        fix = "write interpolations as ${section.key} or ${oc.env:NAME}, and a literal ${ as \\${"
        problems.append(Problem(place_of(source.places, path, ""), key, f"cannot be read: {_first_line(error)}", fix))
        resolved = {}
    if problems:
        raise ConfigError(problems)
    return resolved


def _with_snapshot(tree: Tree, fetch: Fetch | None) -> Tree:
    """The tree with the folder of the cache in place of a hub id in `policy.path`."""
    policy = tree.get("policy")
    if not isinstance(policy, Mapping):
        return tree
    path = policy.get("path")
    if not isinstance(path, str) or not is_hub_id(Path(path)):
        return tree
    folder = cached_snapshot(path) or (fetch(path) if fetch else None)
    if folder is None:
        return tree
    return {**tree, "policy": {**policy, "path": str(folder)}}


def _interpolation_problem(place: str, path: KeyPath, error: Exception, tree: Tree) -> Problem:
    key = ".".join(path)
    raw: Any = tree
    for name in path:
        raw = raw[int(name)] if isinstance(raw, list) else raw[name]
    if isinstance(error, InterpolationKeyError) and (missing := _missing(raw, tree)):
        near = difflib.get_close_matches(missing, [".".join(path) for path in key_paths(tree)], n=1, cutoff=0.5)
        fix = f"did you mean ${{{near[0]}}}? " if near else ""
        default = " (it has its default): write its value here" if missing in all_keys() else ""
        fix += "An interpolation can refer only to keys that the YAML, its base or an override sets"
        return Problem(place, key, f"{raw!r} refers to {missing}, which is not set{default}", fix)
    fix = "write interpolations as ${section.key} or ${oc.env:NAME}"
    return Problem(place, key, f"{raw!r} cannot be resolved: {_first_line(error)}", fix)


def _missing(raw: Any, tree: Tree, followed: frozenset[str] = frozenset()) -> str:
    """The first key that `raw` refers to, directly or through other references, and that the tree lacks; else empty."""
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
        config._places = Aside(places)
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
    """The error text and the fix for one of pydantic's errors."""
    key, value, kind = ".".join(path), detail["input"], detail["type"]
    explain = f"`python -m rl explain {key}`" if key else "`python -m rl explain`"
    if kind == "extra_forbidden" and (owners := kinds_with(path)):
        chosen = f"the selected kind of {'.'.join(path[:-1])}"
        return f"{chosen} has no such key", f"remove it, or select {' or '.join(owners)}, which has this key"
    if kind == "extra_forbidden":
        near = nearest(key)
        meant = f"did you mean {' or '.join(near)}? " if near else ""
        return "there is no such key", f"{meant}Keys here: {', '.join(keys_below(path[:-1]))}"
    known = find_key(path)
    meaning = type_text(known.field) if known and known.field else "a section"
    if kind == "missing":
        return f"is missing and has no default; it takes: {meaning}", f"add it; see {explain}"
    if kind == "value_error":
        return str(detail["ctx"]["error"]), f"change these keys; see {explain}"
    if kind in ("unknown_kind", "unknown_name"):
        names = str(detail["ctx"].get("kinds") or detail["ctx"].get("names")).split(", ")
        given = value.get(str(detail["ctx"].get("key")), "") if isinstance(value, Mapping) else value
        near = difflib.get_close_matches(str(given), names, n=1, cutoff=0.7)
        meant = f"did you mean {near[0]}? " if near else ""
        return f"{_shown(value)} is not valid; the key takes: {meaning}", f"{meant}see {explain}"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        below = ", ".join("such as ID: {}" if name == ANY_NAME else name for name in keys_below(path))
        return f"{_shown(value)} is not a section of keys", f"write keys below it ({below}), or remove it"
    return f"{_shown(value)} is not valid; the key takes: {meaning}", f"give a valid value; see {explain}"


def _shown(value: Any) -> str:
    text = (
        dump_yaml({"value": value}).removeprefix("value: ").strip()
        if not isinstance(value, dict | list)
        else str(value)
    )
    return textwrap.shorten(text, 60, placeholder=" ...")
