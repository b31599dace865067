"""Short ways to make what tests are about: configurations, tasks, turns, rollouts, groups, updates, and a whole run."""

import math
import random
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from envs.messages import Message, ToolCall
from envs.scored import ScoredEnv
from envs.text_env import TextEnv
from rl.config.experiment import ExperimentConfig
from rl.data_types import Group, Outcome, Rollout, Task, Turn, Update
from rl.runs.checkpoint import save_checkpoint
from rl.runs.folder import RunFolder
from rl.runs.memory import memory_metrics
from rl.runs.tracker import Tracker
from rl.runs.tracking import step_metrics
from rl.tokens import Tokens

ARITHMETIC, STORE = "math/Arithmetic-v0", "tools/Store-v0"


def make_config(run_dir: Path | str = "runs/test", /, **sections: Any) -> ExperimentConfig:
    """A valid configuration of one environment; `sections` replace whole sections."""
    tree: dict[str, Any] = {
        "run_dir": run_dir,
        "seed": 0,
        "policy": {"path": "models/none"},
        "weights": "shared_memory",  # engines and learners in the test's own process belong to no cluster
        "environments": {ARITHMETIC: {}},
        "train": {"num_steps": 2, "num_prompts": 2, "group_size": 2},
        **sections,
    }
    return ExperimentConfig.model_validate(tree)


def make_run_config(run_dir: Path | str, /, **sections: Any) -> ExperimentConfig:
    """The configuration of a run of ten steps over the two environments that `write_run` writes of."""
    environments = {ARITHMETIC: {}, STORE: {"weight": 2}}
    return make_config(run_dir, **{"environments": environments, "train": {"num_steps": 10}, **sections})


def make_task(ordinal: int = 0, env_id: str = ARITHMETIC, **options: Any) -> Task:
    return Task(ordinal, env_id, 7, "train", "unlimited", options)


def make_reply(ids: Sequence[int], version: int = 0, forced: Collection[int] = ()) -> Tokens:
    """A reply whose tokens at the places `forced` were not sampled; no two tokens have the same logprob."""
    sampled = [place not in forced for place in range(len(ids))]
    logprobs = [-0.5 - 0.25 * place for place in range(len(ids))]
    return Tokens.make(ids, sampled, {"logprob": logprobs, "version": [version] * len(ids)})


def make_turn(
    prompt_ids: Sequence[int] = (1, 2),
    reply_ids: Sequence[int] = (10, 11, 12),
    *,
    version: int = 0,
    forced: Collection[int] = (),
    is_start: bool = True,
) -> Turn:
    return Turn(Tokens.unsampled(prompt_ids), make_reply(reply_ids, version, forced), "stop", is_start)


def make_rollout(
    reward: float | None = 1.0,
    outcome: str = "ok",
    *,
    task: Task | None = None,
    env_id: str = ARITHMETIC,
    **fields: Any,
) -> Rollout:
    """A rollout of one turn; a reward of None gets an outcome that does not count. `fields` replace what is made."""
    task = task or make_task(env_id=env_id)
    kind = Outcome(outcome)
    if reward is None and kind.counts:
        kind = Outcome.ENV_ERROR
    messages = (
        Message("user", "What is <b>2 + 2</b>?"),
        Message("assistant", "", "I look it up.", (ToolCall("look_up", {"item": "2 + 2"}),)),
        Message("tool", "4", name="look_up"),
        Message("assistant", "The answer is 4.", "2 + 2 = 4"),
    )
    made: dict[str, Any] = {
        "group_id": f"0-{task.ordinal}",
        "member": 0,
        "turns": (make_turn(),),
        "messages": messages,
        "reward_parts": {} if reward is None else {"correct": reward},
        "error": "" if kind.counts else "TimeoutError: reset",
        "malformed_calls": {},
        "budget_violation": "",
        "num_attempts": 1,
        "seconds": 0.25,
    }
    return Rollout(task=task, reward=reward, outcome=kind, **{**made, **fields})


def scored_env(made_by: Callable[[], TextEnv]) -> ScoredEnv:
    """An environment that `scored` made, whose row a test looks at or replaces."""
    env = made_by()
    assert isinstance(env, ScoredEnv)
    return env


def make_group(rewards: Sequence[float | None], ordinal: int = 0, env_id: str = ARITHMETIC) -> Group:
    """A group whose members have these rewards; those of None do not count."""
    task = make_task(ordinal, env_id)
    rollouts = tuple(make_rollout(reward, task=task, member=member) for member, reward in enumerate(rewards))
    return Group(f"0-{ordinal}", task, rollouts)


def group_of(*rollouts: Rollout) -> Group:
    return Group(rollouts[0].group_id, rollouts[0].task, rollouts)


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
        "num_row_tokens": 50,
        "num_tokens": 40,
        "seconds": 2.0,
        "measures": {"masked_fraction": 0.0, "clip_fraction": 0.0},
    }
    return Update(**{**fields, **changes})


def save_empty_checkpoint(run: RunFolder, step: int) -> None:
    save_checkpoint(run.checkpoints, step, lambda folder: {}, {})


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
            working = {"engines": 0.4, "learner": 0.2, "both": 0.3, "neither": 0.1}
            seconds = {"collect": 3 + rng.random(), "update": 2 + 0.2 * rng.random(), "publish": 0.2}
            memory = memory_metrics(300.0, {"process": 500.0, "weights": 40.0}, [])
            tracker.track(step, step_metrics(groups, update, seconds, working) | memory)
            tracker.save_rollouts(step, "train", groups)
            if step % 20 == 0 and step < num_steps:
                _write_evaluation(tracker, step, "step", 0.2 + 0.6 * share)
        _write_evaluation(tracker, num_steps, "after", 0.8)
    return config.run_dir


def _noisy_group(rng: random.Random, env_id: str, mean: float, step: int) -> Group:
    rollouts = []
    for member in range(8):
        if rng.random() < 0.02:
            rollouts.append(make_rollout(None, "env_timeout", env_id=env_id, member=member))
            continue
        reward = float(rng.random() < mean)
        turns = (make_turn(reply_ids=range(10, 30 + rng.randrange(30)), version=step - 1),)
        outcome = "ok" if rng.random() < 0.9 else "truncated"
        rollouts.append(make_rollout(reward, outcome, env_id=env_id, member=member, turns=turns))
    return group_of(*rollouts)


def _write_evaluation(tracker: Tracker, step: int, label: str, reward: float) -> None:
    metrics = {}
    for env_id in (ARITHMETIC, STORE):
        metrics |= {f"reward/{env_id}": reward, f"stderr/{env_id}": 0.03, f"accuracy/{env_id}": reward}
        metrics |= {f"num/{env_id}": 64, f"failed/{env_id}": 2, f"reply_tokens/{env_id}": 30.5}
    tracker.track_evaluation(step, label, metrics)
    rollout = make_rollout(reward, task=Task(0, ARITHMETIC, 9, "heldout", "unlimited"))
    tracker.save_rollouts(step, "evaluation", [group_of(rollout)])
