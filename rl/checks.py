"""What is checked before a run starts anything? `rl train --dry-run` does this and no more."""

from collections.abc import Callable, Mapping
from pathlib import Path

from envs.sandbox import require_level
from rl.cluster.address import ClusterError
from rl.cluster.cluster import check_cluster
from rl.cluster.shared_memory import NUM_VERSIONS
from rl.config.errors import ConfigError
from rl.config.experiment import ExperimentConfig
from rl.plan.memory import FLOAT32, published_bytes
from rl.plan.policy import checkpoint_shapes
from rl.policy_checks import check_policy, rate_warning
from rl.preflight import check_sinks, preflight


def check(config: ExperimentConfig) -> None:
    """All that `train` checks before it starts anything. Raises `ConfigError`."""
    try:
        for check_one in CHECKS.values():
            check_one(config)
    except ClusterError as error:  # nothing has begun yet: the keys do not suit the machine
        raise ConfigError(str(error)) from None
    if config.policy.path is not None:
        print_choices(config, config.policy.path)


def _check_checkpoint(config: ExperimentConfig) -> None:
    if config.policy.path is not None:
        check_policy(config.policy.path, config)


def _check_room(config: ExperimentConfig) -> None:
    if config.policy.path is not None:
        check_room(config, config.policy.path)


CHECKS: Mapping[str, Callable[[ExperimentConfig], None]] = {
    # First: pre-flight runs environments in this process, and the supervised stage inherits the level.
    "sandbox level": lambda config: require_level(config.rollout.sandbox_level),
    "environments": preflight,
    "sinks": check_sinks,
    "cluster": check_cluster,
    "checkpoint": _check_checkpoint,
    "room for weights": _check_room,
}
"""By what they look at, in their order."""


def print_choices(config: ExperimentConfig, policy_path: Path) -> None:
    """Print which values the kind of policy chose, and a warning about a learning rate that may ruin it."""
    if config.chosen:
        values = ", ".join(f"{key}={value:g}" for key, value in config.chosen.items())
        print(f"defaults of a pretrained checkpoint: {values} (`python -m rl explain KEY` tells their sources)")
    if config.learner.adapter is None and (
        warning := rate_warning(policy_path, "learner.learning_rate", config.learner.learning_rate)
    ):
        print(warning)


def check_room(config: ExperimentConfig, policy_path: Path) -> None:
    """Raise `ClusterError` if there is no room to publish the policy's weights."""
    shapes, learner = checkpoint_shapes(policy_path), config.learner
    version = published_bytes(shapes, config.precision)
    if learner.adapter is not None and learner.adapter.publish == "adapter":  # its base once
        config.weights.check_room(version + NUM_VERSIONS * FLOAT32 * shapes.num_adapter_weights(learner))
    else:
        config.weights.check_room(NUM_VERSIONS * version)
