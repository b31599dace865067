"""Which policy did a run train last, from which did it start, and whose weights does a folder serve?"""

from pathlib import Path

from rl.config.errors import ConfigError
from rl.config.experiment import ExperimentConfig
from rl.config.read import load_config
from rl.config.saved_policy import base_of, is_adapter
from rl.runs.checkpoint import latest_checkpoint


def newest_policy(config: ExperimentConfig) -> Path:
    """The policy in the run's newest checkpoint, otherwise the one that training starts from.

    It may be an adapter (`rl.config.saved_policy`). Raises `ConfigError` if the newest checkpoint holds slices only.
    """
    checkpoint = latest_checkpoint(config.run_dir / "checkpoints")
    if checkpoint is None:
        return first_policy(config)
    if not checkpoint.has_policy:
        as_served = " precision=bf16" if config.precision.is_quantised else ""  # exports are folded already
        raise ConfigError(
            f"run_dir: the newest checkpoint, {checkpoint.path}, holds the slices of several ranks and no policy"
            f" (train.save_policy_every); make one with `python -m rl export {checkpoint.path} FOLDER`, and give"
            f" --policy FOLDER{as_served}"
        )
    return checkpoint.policy


def first_policy(config: ExperimentConfig) -> Path:
    """The policy that reinforcement learning starts from: the supervised one, otherwise `policy.path`."""
    for candidate in (config.run_dir / "sft", config.policy.path):
        if candidate is not None and candidate.exists():
            return candidate
    raise ConfigError(f"run_dir: {config.run_dir} holds no policy yet; train first, or give one with --policy")


def checkpoint_served(source: Path) -> tuple[Path, str | None]:
    """The checkpoint whose config.json and shapes are those of the policy that `python -m rl serve SOURCE` serves, and
    the dtype in which it does; None for the checkpoint's own.

    `source` is a checkpoint or a run folder. Raises `ConfigError`.
    """
    if (source / "config.json").is_file():
        return source, None
    config = load_config(source / "config.yaml").model_copy(update={"run_dir": source})
    checkpoint = latest_checkpoint(source / "checkpoints")
    policy = checkpoint.policy if checkpoint and checkpoint.has_policy else first_policy(config)
    return base_of(policy).path if is_adapter(policy) else policy, config.precision.arithmetic
