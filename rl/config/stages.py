"""How is the configuration of a stage read that runs by itself: supervised, on preference pairs, or a reward model?"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rl.config.errors import ConfigError
from rl.config.experiment import ExperimentConfig
from rl.config.learner import LearnerConfig
from rl.config.preferences import PairStage
from rl.config.read import load_config, pair_stage_problems, stage_problems

ANY_LENGTH = 2**31
"""More tokens than any `policy.max_tokens`, which the learner of reinforcement learning must hold."""

SECTIONS = {"sft": "{num_steps: 300}", "dpo": "{data: pairs.jsonl}", "reward_model": "{data: pairs.jsonl}"}
"""By name: an example of a stage's section."""


def load_stage(yaml: Path, overrides: Sequence[str], section: str = "sft") -> ExperimentConfig:
    """The configuration for the stage of this section alone, with neutral values for sections that it does not read,
    and micro-batches that hold the longest row. Raises `ConfigError`.
    """
    unread: dict[str, Any] = {"train": {"num_steps": 1}, "environments": {"none": {}}}
    config = load_config(yaml, overrides, {**unread, "learner": {"tokens_per_micro_batch": ANY_LENGTH}})
    stage = getattr(config, section)
    if stage is None:
        raise ConfigError(f"{yaml} has no `{section}` section: add one, such as `{section}: {SECTIONS[section]}`")
    if any(source.gold for source in stage.sources):
        del unread["environments"]
    num_tokens = max(LearnerConfig().tokens_per_micro_batch, config.policy.max_tokens)
    return load_config(yaml, overrides, {**unread, "learner": {"tokens_per_micro_batch": num_tokens}})


def checked_stage(yaml: Path, overrides: Sequence[str]) -> ExperimentConfig:
    """The same, if its policy and data are there. Raises `ConfigError`."""
    config = load_stage(yaml, overrides)
    if problems := stage_problems(config):
        raise ConfigError(problems)
    return config


def checked_pair_stage(yaml: Path, overrides: Sequence[str], name: PairStage) -> ExperimentConfig:
    """The same, of a stage on preference pairs. Raises `ConfigError`."""
    config = load_stage(yaml, overrides, name)
    if problems := pair_stage_problems(config, name):
        raise ConfigError(problems)
    return config
