"""Can all stages of a chain run? Found out before the first begins; what earlier stages will make is not there yet.

The policy of a stage that is still to be made has the architecture and the tokenizer of the one at the root of the
chain, which stands in for it.
"""

import contextlib
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from rl.config.chain_stage import ROWS, SFT, TRAIN, Stage
from rl.config.checkpoint_files import folder_fault
from rl.config.errors import ConfigError, Problem
from rl.config.experiment import ExperimentConfig
from rl.config.hub import downloaded_snapshot
from rl.config.policy import PolicyConfig, TinyHybrid
from rl.config.preferences import PairStage
from rl.config.read import check_references, load_config, pair_stage_problems, stage_problems
from rl.config.stages import load_stage

PAIRS: Mapping[str, PairStage] = {"sft dpo": "dpo", "sft reward-model": "reward_model"}
"""Sections of the stages on preference pairs, by command."""


def check_stages(stages: Sequence[Stage]) -> None:
    """Raise `ConfigError` that tells what is wrong with each stage."""
    faults = {}
    for stage in stages:
        try:
            with _same_environment():
                _check(stage)
        except ConfigError as error:
            faults[stage.name] = str(error)
    if faults:
        told = "\n".join(f"stage {name}: {fault}" for name, fault in faults.items())
        raise ConfigError(f"nothing was begun, because of {', '.join(faults)}\n{told}")


def read_stage(stage: Stage, policy: Path | None = None) -> ExperimentConfig:
    """The configuration of a stage that has one, with another policy in place of its source's. Raises `ConfigError`."""
    assert stage.yaml is not None
    overrides = stage.overrides(policy)
    if stage.command == TRAIN:
        return load_config(stage.yaml, overrides, fetch=None if policy else downloaded_snapshot)
    return load_stage(stage.yaml, overrides, PAIRS.get(stage.command, "sft"))


def _check(stage: Stage) -> None:
    if stage.command == ROWS:  # its options were read with the chain
        return
    if stage.source is None or stage.source.result.exists():
        config, awaited = read_stage(stage), set[str]()
    else:
        config, awaited = _with_root(stage), {"policy.path", "policy.build"}
    awaited |= {key for key, other in stage.references.items() if not other.result.exists()}
    if stage.command == TRAIN:
        _check_training(config, awaited)
    elif stage.command == SFT:
        assert config.sft is not None
        if config.sft.has_gold:
            _raise(_problems_of_references(config), awaited)
        _raise(stage_problems(config), awaited)
        _check_policy(config, "sft")
    else:
        name = PAIRS[stage.command]
        _raise(pair_stage_problems(config, name), awaited)
        _check_policy(config, name)


def _check_policy(config: ExperimentConfig, name: Literal["sft"] | PairStage) -> None:
    from rl.policy_checks import check_stage_policy  # loads a tokenizer: mistakes in YAML come first

    if config.policy.path is not None and folder_fault(config.policy.path) is None:
        check_stage_policy(config, name)


def _with_root(stage: Stage) -> ExperimentConfig:
    """The configuration with the policy that the chain begins with, or a tiny one if that is not there either: its
    absence is told once, by the stage that begins with it.
    """
    root = stage.source
    while root is not None and root.source is not None:
        root = root.source
    assert root is not None
    try:
        first = read_stage(root).policy
    except ConfigError:  # told by the stage itself
        first = PolicyConfig(build=TinyHybrid())
    config = read_stage(stage, first.path)
    is_there = first.path is not None and folder_fault(first.path) is None
    path = first.path if is_there else None
    build = None if is_there else first.build or TinyHybrid()
    return config.model_copy(update={"policy": config.policy.model_copy(update={"path": path, "build": build})})


def _check_training(config: ExperimentConfig, awaited: Collection[str]) -> None:
    from rl.checks import CHECKS, check_checkpoint, check_judge  # takes seconds to import: mistakes in YAML come first
    from rl.cluster.address import ClusterError

    _raise(stage_problems(config), awaited)
    config = _without_rows(config, awaited)
    known = {name: one for name, one in config.teachers.items() if f"teachers.{name}.path" not in awaited}
    for check_one in CHECKS.values():
        if check_one is check_judge and "judge.path" in awaited:
            continue
        try:
            check_one(config.model_copy(update={"teachers": known}) if check_one is check_checkpoint else config)
        except ClusterError as error:  # nothing has begun yet: the keys do not suit the machine
            raise ConfigError(str(error)) from None


def _without_rows(config: ExperimentConfig, awaited: Collection[str]) -> ExperimentConfig:
    """The experiment without the rows of its supervised stage if some are still to be made: whoever looks for them
    would see nothing else.
    """
    if config.sft is None or not any(f"{key}.".startswith("sft.data.") for key in awaited):
        return config
    return config.model_copy(update={"sft": config.sft.model_copy(update={"data": None})})


def _problems_of_references(config: ExperimentConfig) -> Sequence[Problem]:
    try:
        check_references(config)
    except ConfigError as error:
        return error.problems
    return ()


def _raise(problems: Sequence[Problem], awaited: Collection[str]) -> None:
    """Raise `ConfigError` with the problems of keys that are not awaited, if there are any."""
    if left := [problem for problem in problems if problem.key not in awaited]:
        raise ConfigError(left)


@contextlib.contextmanager
def _same_environment() -> Iterator[None]:
    """Put `os.environ` back: a check announces the judge of its stage, which other stages do not have."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
