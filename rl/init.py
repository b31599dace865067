"""Which experiment suits this machine, this policy and these environments, to begin with? Written as YAML."""

import os
from collections.abc import Sequence
from pathlib import Path

from envs.registry import environment_ids, unknown_message
from rl.config.errors import ConfigError
from rl.config.yaml_text import Tree, dump_yaml
from rl.cpu_bfloat16 import has_quick_bfloat16

TINY_HEAD = "# A tiny policy of random weights: it learns the basics in a supervised stage first."
HEAD = (
    "# Defaults suit a pretrained checkpoint; `python -m rl train {file} --dry-run` checks it and tells what it chose."
)


def write_experiment(file: Path, policy: str, env_ids: Sequence[str], num_gpus: int) -> None:
    """Write a first experiment to a new file. An empty `policy` builds a tiny one.

    Raises `ConfigError` for an environment that is not installed and a file that is there already.
    """
    if file.exists():
        raise ConfigError(f"{file} exists already; give another name")
    for env_id in env_ids:
        if ":" not in env_id and env_id not in environment_ids():
            raise ConfigError(f"--env {env_id}: {unknown_message(env_id)}")
    head = HEAD.format(file=file) if policy else TINY_HEAD
    file.write_text(f"{head}\n{dump_yaml(first_experiment(file.stem, policy, env_ids, num_gpus))}", encoding="utf-8")


def first_experiment(name: str, policy: str, env_ids: Sequence[str], num_gpus: int) -> Tree:
    """The keys of an experiment. Learner and engine share one GPU; of several, each engine has its own."""
    tree: Tree = {
        "run_dir": f"runs/{name}",
        "seed": 0,
        "policy": {"path": policy} if policy else {"build": {}},
        "environments": {env_id: {} for env_id in env_ids},
        "train": {"num_steps": 100, "num_prompts": 8, "group_size": 8},
    }
    if policy:
        tree["precision"] = "bf16" if num_gpus or has_quick_bfloat16() else "float32"
    else:
        tree["sft"] = {}
    if num_gpus == 1:
        tree["learner"] = {"gpus": 0.5}
        tree["rollout"] = {"gpus_per_worker": 0.5, "gpu_memory_share": 0.4}
    elif num_gpus > 1:
        tree["learner"] = {"gpus": 1}
        tree["rollout"] = {"num_workers": num_gpus - 1, "gpus_per_worker": 1}
    elif policy and (os.cpu_count() or 1) > 1:
        tree["learner"] = {"cpus": 2}  # its threads; it waits while the engine samples
    return tree
