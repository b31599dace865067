"""Which policy did a run train last?"""

from pathlib import Path

from rl.config.errors import ConfigError
from rl.config.experiment import ExperimentConfig
from rl.runs.checkpoint import latest_checkpoint


def newest_policy(config: ExperimentConfig) -> Path:
    """The run's newest checkpoint, otherwise its supervised policy, otherwise `policy.path`."""
    checkpoint = latest_checkpoint(config.run_dir / "checkpoints")
    candidates = [checkpoint.learner / "model" if checkpoint else None, config.run_dir / "sft", config.policy.path]
    for candidate in candidates:
        if candidate is not None and candidate.exists():
            return candidate
    raise ConfigError(f"run_dir: {config.run_dir} holds no policy yet; train first, or give one with --policy")
