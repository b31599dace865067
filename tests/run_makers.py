"""Short ways to make what runs are made of: configurations, groups, updates, and a whole synthetic run."""

import math
import random
from pathlib import Path
from typing import Any

from envs.messages import Message, ToolCall
from rl.config.experiment import ExperimentConfig
from rl.data_types import Group, Outcome, Rollout, Task, Turn, Update
from rl.runs.checkpoint import save_checkpoint
from rl.runs.folder import RunFolder
from rl.runs.tracker import Tracker
from rl.runs.tracking import step_metrics
from rl.tokens import Tokens
from tests.conftest import make_reply

ARITHMETIC, STORE = "math/Arithmetic-v0", "tools/Store-v0"


def make_config(run_dir: Path, **sections: Any) -> ExperimentConfig:
    tree = {
        "run_dir": run_dir,
        "seed": 1,
        "policy": {"path": "models/x"},
        "environments": {ARITHMETIC: {}, STORE: {"weight": 2}},
        "train": {"num_steps": 10},
    }
    return ExperimentConfig.model_validate({**tree, **sections})


def make_turn(num_tokens: int = 3, version: int = 0, num_forced: int = 0) -> Turn:
    forced = range(num_tokens - num_forced, num_tokens)
    reply = make_reply(range(10, 10 + num_tokens), [version] * num_tokens, forced)
    return Turn(Tokens.unsampled([1, 2]), reply, "stop", is_start=True)


def make_rollout(reward: float | None = 1.0, outcome: str = "ok", env_id: str = ARITHMETIC, **changes: Any) -> Rollout:
    messages = (
        Message("user", "What is <b>2 + 2</b>?"),
        Message("assistant", "", "I look it up.", (ToolCall("look_up", {"item": "2 + 2"}),)),
        Message("tool", "4", name="look_up"),
        Message("assistant", "The answer is 4.", "2 + 2 = 4"),
    )
    fields: dict[str, Any] = {
        "task": Task(0, env_id, 5, "train", "unlimited", {"level": 1}),
        "group_id": "train-0",
        "member": 0,
        "turns": (make_turn(),),
        "messages": messages,
        "reward": reward,
        "reward_parts": {} if reward is None else {"correct": reward},
        "outcome": Outcome(outcome),
        "error": "" if reward is not None else "TimeoutError: reset",
        "num_malformed_calls": 0,
        "budget_violation": "",
        "num_attempts": 1,
        "seconds": 0.25,
    }
    return Rollout(**{**fields, **changes})


def make_group(*rollouts: Rollout) -> Group:
    return Group("train-0", rollouts[0].task, rollouts)


def make_update(version: int = 1, **changes: Any) -> Update:
    fields: dict[str, Any] = {
        "policy_version": version,
        "loss": 0.1,
        "grad_norm": 0.5,
        "learning_rate": 1e-3,
        "mismatch": 1.001,
        "mismatch_kl": 1e-5,
        "mismatch_stale": None,
        "entropy": 1.2,
        "codes_changed": 0.0,
        "num_loss_tokens": 30,
        "num_tokens": 50,
        "seconds": 2.0,
        "measures": {"masked_fraction": 0.0, "clip_fraction": 0.0},
    }
    return Update(**{**fields, **changes})


def save_empty_checkpoint(run: RunFolder, step: int) -> None:
    save_checkpoint(run.checkpoints, step, lambda folder: None, {})


def write_run(config: ExperimentConfig, num_steps: int) -> Path:
    """A run whose rewards rise, with evaluations before, in between and after."""
    rng = random.Random(0)
    with RunFolder.open(config) as run, Tracker(run, config) as tracker:
        _write_evaluation(tracker, 0, "before", 0.2)
        for step in range(1, num_steps + 1):
            share = step / num_steps
            groups = [_noisy_group(rng, env_id, 0.2 + 0.6 * share, step) for env_id in config.environments]
            update = make_update(
                step,
                mismatch=1.001 + 0.002 * rng.random(),
                entropy=1.2 * math.exp(-share) + 0.05 * rng.random(),
                grad_norm=0.3 + 0.3 * rng.random(),
            )
            seconds = {"collect": 3 + rng.random(), "update": 2 + 0.2 * rng.random(), "publish": 0.2}
            tracker.track(step, step_metrics(groups, update, seconds))
            tracker.save_rollouts(step, "train", groups)
            if step % 20 == 0 and step < num_steps:
                _write_evaluation(tracker, step, "step", 0.2 + 0.6 * share)
        _write_evaluation(tracker, num_steps, "after", 0.8)
    return config.run_dir


def _noisy_group(rng: random.Random, env_id: str, mean: float, step: int) -> Group:
    rollouts = []
    for member in range(8):
        if rng.random() < 0.02:
            rollouts.append(make_rollout(None, "env_timeout", env_id, member=member))
            continue
        reward = float(rng.random() < mean)
        turns = (make_turn(20 + rng.randrange(30), step - 1),)
        outcome = "ok" if rng.random() < 0.9 else "truncated"
        rollouts.append(make_rollout(reward, outcome, env_id, member=member, turns=turns))
    return make_group(*rollouts)


def _write_evaluation(tracker: Tracker, step: int, label: str, reward: float) -> None:
    metrics = {}
    for env_id in (ARITHMETIC, STORE):
        metrics |= {f"reward/{env_id}": reward, f"stderr/{env_id}": 0.03, f"accuracy/{env_id}": reward}
        metrics |= {f"num/{env_id}": 64, f"failed/{env_id}": 2, f"reply_tokens/{env_id}": 30.5}
    tracker.track_evaluation(step, label, metrics)
    rollout = make_rollout(reward, task=Task(0, ARITHMETIC, 9, "heldout", "unlimited"))
    tracker.save_rollouts(step, "evaluation", [make_group(rollout)])
