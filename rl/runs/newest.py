"""Which policy did a run train last?"""

from pathlib import Path

from rl.config.errors import ConfigError
from rl.config.experiment import ExperimentConfig
from rl.runs.checkpoint import latest_checkpoint


def newest_policy(config: ExperimentConfig) -> Path:
    """The policy in the run's newest checkpoint, otherwise its supervised policy, otherwise `policy.path`.

    It may be an adapter (`rl.config.saved_policy`).
    """
    checkpoint = latest_checkpoint(config.run_dir / "checkpoints")
    trained = checkpoint.policy if checkpoint else None
    candidates = [trained, config.run_dir / "sft", config.policy.path]
    for candidate in candidates:
        if candidate is not None and candidate.exists():
            return candidate
    raise ConfigError(f"run_dir: {config.run_dir} holds no policy yet; train first, or give one with --policy")
