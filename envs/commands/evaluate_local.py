"""`python -m envs eval ID --policy FOLDER`: how well does a local checkpoint perform? vLLM samples the replies.

The trainer plays in a separate process, since environments do not import it. Conversations become tokens, and replies
are parsed, as in training.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from envs.commands.evaluate import print_summary
from envs.commands.options import open_once
from envs.commands.output import write_lines
from envs.errors import InputError, named
from envs.rollout_file import read_rollouts
from envs.sandbox import minimum_level

STDERR = 2
CONTEXT_TOKENS = 4096
"""Longest conversation, unless the checkpoint allows less or long replies need more."""


class LocalEvaluationError(RuntimeError):
    """The process that plays failed and has printed why."""


@dataclass(frozen=True, slots=True)
class LocalPolicy:
    """Which checkpoint, and how its replies are sampled."""

    path: Path
    chat: str
    temperature: float
    max_tokens: int
    timeout_s: float
    at_once: int


@dataclass(frozen=True, slots=True)
class Tries:
    """What is played: `num_tasks` tasks of an environment's split, `num_tries` times each."""

    env_id: str
    options: Mapping[str, Any]
    split: str
    num_tasks: int
    num_tries: int


def evaluate_local(console: Console, policy: LocalPolicy, tries: Tries, out: Path | None) -> list[dict[str, Any]]:
    """Play the tasks. Print a summary; return the rollouts and write them to `out`.

    Raises `InputError` for a folder without a checkpoint, `EnvFailure` for an environment or options that cannot be
    used, and `LocalEvaluationError`.
    """
    open_once(tries.env_id, {**tries.options, "split": tries.split})
    with tempfile.TemporaryDirectory(prefix="polygym_eval_") as folder:
        yaml = Path(folder) / "evaluate.yaml"
        yaml.write_text(json.dumps(experiment(policy, tries, folder)))  # JSON is YAML
        command = [sys.executable, "-m", "rl", "evaluate", str(yaml), "--split", tries.split]
        if base_of(policy.path) != policy.path:
            command += ["--policy", str(policy.path.resolve())]
        done = subprocess.run(command, stdout=STDERR)  # its progress; the summary is printed here
        if done.returncode == InputError.exit_code:
            raise InputError(f"{policy.path} cannot be evaluated so; see above")
        if done.returncode:
            raise LocalEvaluationError(f"{policy.path} could not be evaluated (exit code {done.returncode}); see above")
        saved = read_rollouts(Path(folder) / "evaluation" / "rollouts.jsonl")
        rollouts = [{**rollout, "policy": str(policy.path)} for rollout in saved]
    if out is not None:
        write_lines(out, rollouts)
    print_summary(console, tries.env_id, rollouts, tries.num_tries)
    return rollouts


def experiment(policy: LocalPolicy, tries: Tries, folder: str) -> dict[str, Any]:
    """The experiment that `rl evaluate` plays. Raises `InputError`."""
    base = base_of(policy.path)
    context = min(context_tokens(base), max(CONTEXT_TOKENS, 2 * policy.max_tokens))
    return {
        "run_dir": folder,
        "seed": 0,
        "train": {"num_steps": 1},
        "policy": {"path": str(base.resolve()), "chat": policy.chat, "max_tokens": context},
        "environments": {tries.env_id: {"options": dict(tries.options)}},
        "evaluation": {
            "num_tasks": tries.num_tasks,
            "num_samples": tries.num_tries,
            "temperature": policy.temperature,
        },
        "rollout": {
            "max_in_flight": policy.at_once,
            "max_reply_tokens": min(policy.max_tokens, context // 2),
            "reply_timeout_s": policy.timeout_s,
            "sandbox_level": minimum_level(),
        },
    }


def base_of(policy: Path) -> Path:
    """The policy itself, or the base of an adapter in peft's format. Raises `InputError`."""
    file = policy / "adapter_config.json"
    if (policy / "config.json").is_file() or not file.is_file():
        return policy
    try:
        return Path(json.loads(file.read_text())["base_model_name_or_path"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} does not tell the adapter's base: {error}") from error


def context_tokens(policy: Path) -> int:
    """The longest conversation that the checkpoint can read. Raises `InputError`."""
    try:
        return json.loads((policy / "config.json").read_text())["max_position_embeddings"]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"--policy: {policy} is not the folder of a Hugging Face checkpoint: {named(error)}\n    fix: give the"
            " folder that holds config.json; `python -m rl export RUN FOLDER` writes one of a run"
        ) from error
