"""Which policy does reinforcement learning start from? The supervised stage runs first, as a process of its own.

Its memory is free again when reinforcement learning starts, and `rl` need not import TRL. With several ranks of the
learner it is as many processes: on this machine that process starts them (`sft.ranks`), and in a cluster that was
joined they run on any nodes with the resources of a rank.
"""

from collections.abc import Sequence
from pathlib import Path

from rl.cluster.actors import ActorDied
from rl.cluster.address import cluster_address
from rl.cluster.command import run_on_cluster
from rl.config.errors import ConfigError
from rl.config.experiment import ExperimentConfig
from rl.process import run_process
from rl.runs.folder import RunFolder
from rl.stop import raise_if_requested


def supervised_stage(config: ExperimentConfig, folder: RunFolder) -> Path:
    """The policy folder that RL starts from. If the experiment has an `sft` section, a subprocess trains it first."""
    if config.sft is None:
        assert config.policy.path is not None
        return config.policy.path
    if not folder.sft.exists():
        command = ["sft", "train", str(folder.config_file.resolve())]
        address = cluster_address(config.ray.address)
        code = _run_here(command) if address is None else _run_on(address, command, config)
        if code == 2:
            raise ConfigError("the supervised stage cannot train these rows; see the error above")
        if code != 0:
            raise StageError(f"the supervised stage ended with exit code {code}; see its output above")
    return folder.sft


def _run_here(command: Sequence[str]) -> int:
    code, stop = run_process(command)
    if stop is not None:
        raise stop
    return code


def _run_on(address: str, command: Sequence[str], config: ExperimentConfig) -> int:
    """On nodes of the cluster, with what the learner reserves: the driver's node may have no GPU."""
    try:
        code = run_on_cluster(address, command, config, print)
        raise_if_requested()  # it may end before it is asked to
        return code
    except ActorDied as error:
        raise StageError(f"a process of the supervised stage is lost ({error}); --resume goes on from there") from error


class StageError(RuntimeError):
    """The subprocess of a stage failed."""
