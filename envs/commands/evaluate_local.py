"""`python -m envs eval ID --policy FOLDER`: how does a checkpoint here do in an environment? vLLM samples the replies.

The trainer plays, in a process of its own, since environments do not import it: conversations become tokens, and
replies are read, as in training.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

from envs.commands.evaluate import print_summary
from envs.registry import make
from envs.rollout_file import read_rollouts
from envs.sandbox import minimum_level

CONTEXT_TOKENS = 4096
"""Longest conversation, where the checkpoint allows as much and replies are not longer still."""


class LocalEvaluationError(RuntimeError):
    """The folder holds no checkpoint, or the process that plays failed; it has said why."""


def evaluate_local(
    console: Console,
    policy: Path,
    env_id: str,
    options: dict[str, Any],
    *,
    chat: str,
    split: str,
    num_tasks: int,
    num_tries: int,
    temperature: float,
    max_tokens: int,
    timeout_s: float,
    at_once: int,
    out: Path | None,
) -> list[dict[str, Any]]:
    """Play `num_tasks` tasks, each so many times; print and give the rollouts. Raises `LocalEvaluationError`."""
    env = make(env_id)
    env.read_options({**options, "split": split})
    context = min(context_tokens(policy), max(CONTEXT_TOKENS, 2 * max_tokens))
    with tempfile.TemporaryDirectory(prefix="polygym_eval_") as folder:
        experiment = {
            "run_dir": folder,
            "seed": 0,
            "train": {"num_steps": 1},
            "policy": {"path": str(policy.resolve()), "chat": chat, "max_tokens": context},
            "environments": {env_id: {"options": options}},
            "evaluation": {
                "num_tasks": num_tasks,
                "num_samples": num_tries,
                "temperature": temperature,
            },
            "rollout": {
                "max_in_flight": at_once,
                "max_reply_tokens": min(max_tokens, context // 2),
                "reply_timeout_s": timeout_s,
                "sandbox_level": minimum_level(),
            },
        }
        yaml = Path(folder) / "evaluate.yaml"
        yaml.write_text(json.dumps(experiment))  # JSON is YAML
        done = subprocess.run(
            [sys.executable, "-m", "rl", "evaluate", str(yaml), "--split", split], stdout=subprocess.DEVNULL
        )
        if done.returncode:
            raise LocalEvaluationError(f"{policy} could not be evaluated (exit code {done.returncode}); see above")
        saved = Path(folder) / "evaluation" / "rollouts.jsonl"
        if out is not None:
            shutil.copyfile(saved, out)
        rollouts = list(read_rollouts(saved))
    print_summary(console, env_id, rollouts, num_tries)
    return rollouts


def context_tokens(policy: Path) -> int:
    """The longest conversation that the checkpoint can read. Raises `LocalEvaluationError`."""
    try:
        return json.loads((policy / "config.json").read_text())["max_position_embeddings"]
    except (OSError, ValueError, KeyError) as error:
        raise LocalEvaluationError(
            f"{policy} is no folder of a Hugging Face checkpoint: {type(error).__name__}: {error}"
        ) from error
