"""Which policy does reinforcement learning start from? The supervised stage runs first, as a process of its own.

Its memory is free again when reinforcement learning starts, and `rl` need not import TRL.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

from rl.config.errors import ConfigError
from rl.config.experiment import ExperimentConfig
from rl.runs.folder import RunFolder
from rl.stop import POLL_S, end_with_parent, raise_if_requested


def supervised_stage(config: ExperimentConfig, folder: RunFolder) -> Path:
    """The policy folder that RL starts from. If the experiment has an `sft` section, a subprocess trains it first."""
    if config.sft is None:
        assert config.policy.path is not None
        return config.policy.path
    if not folder.sft.exists():
        command = [sys.executable, "-m", "sft", "train", str(folder.config_file)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with subprocess.Popen(command, env=environment, preexec_fn=end_with_parent) as process:
            try:
                while process.poll() is None:
                    raise_if_requested()
                    time.sleep(POLL_S)
            except BaseException:
                process.terminate()
                raise
        raise_if_requested()  # Ctrl-C also reaches the stage, which may end before this process checks for the signal
        if process.returncode == 2:
            raise ConfigError("the supervised stage cannot train these rows; see the error above")
        if process.returncode != 0:
            raise StageError(f"the supervised stage ended with exit code {process.returncode}; see its output above")
    return folder.sft


class StageError(RuntimeError):
    """The subprocess of a stage failed."""
