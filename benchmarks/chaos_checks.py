"""Did a disturbed run keep the contract? From its folder: what was trained, by which weights, from which rewards."""

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.node_figures import digest, lines
from envs.commands.replay import replay
from envs.rollout_file import read_rollouts
from rl.config.read import load_config
from rl.data_types import Rollout
from rl.runs.checkpoint import latest_checkpoint
from rl.runs.folder import RunFolder
from rl.runs.manifest import read_manifest
from rl.runs.saved_rollouts import rollout_from


def counts(run_dir: Path) -> dict[str, int]:
    """Of the tasks that the run trained or masked, and of rows that it must not have trained."""
    train = load_config(run_dir / "config.yaml").train
    newest = latest_checkpoint(RunFolder(run_dir).checkpoints)
    assert newest is not None
    masked: list[int] = newest.state["ledger"]["masked"]
    groups: Counter[int] = Counter()
    poisoned = without_reason = masked_rows = retried = 0
    for step, file in RunFolder(run_dir).rollouts_files("train").items():
        for saved in read_rollouts(file):
            rollout = rollout_from(saved)
            groups[rollout.task.ordinal] += rollout.member == 0
            poisoned += is_poisoned(rollout, step - 1, train.max_staleness, saved)
            masked_rows += not rollout.outcome.counts
            without_reason += not rollout.outcome.counts and not rollout.error
            retried += rollout.num_attempts > 1
    asked = set(range(train.num_steps * train.num_prompts))
    return {
        "lost": len(asked - groups.keys() - set(masked)),
        "twice": sum(num - 1 for num in groups.values()),
        "poisoned": poisoned,
        "masked": len(masked),
        "masked_rows": masked_rows,
        "retried_rows": retried,
        "masked_without_reason": without_reason,
        "steps": len(lines(run_dir, "train")),
    }


def is_poisoned(rollout: Rollout, version: int, max_staleness: int, saved: Mapping[str, Any]) -> bool:
    """Whether a row was trained with a reward that its environment does not give for these replies, without a finite
    reward, or with tokens of other versions than `version` and `max_staleness` before it.
    """
    if not rollout.outcome.counts:
        return rollout.reward is not None
    if rollout.reward is None or not math.isfinite(rollout.reward):
        return True
    for turn in rollout.turns:
        columns, sampled = turn.reply.columns, turn.reply.sampled
        versions = columns["version"][sampled]
        if not np.isfinite(columns["logprob"][sampled]).all():
            return True
        if ((versions < version - max_staleness) | (versions > version)).any():
            return True
    again = replay(saved)
    return again.differs or bool(again.problem)


def bits(run_dir: Path) -> dict[str, Any]:
    """All sampled tokens with their rewards, by step, and all bytes of the last checkpoint's learner."""
    newest = latest_checkpoint(RunFolder(run_dir).checkpoints)
    assert newest is not None
    replies = [digest(file) for file in RunFolder(run_dir).rollouts_files("train").values()]
    files = read_manifest(newest.path)["files"]
    return {"replies": replies, "weights": {name: file["xxh3"] for name, file in files.items()}}
