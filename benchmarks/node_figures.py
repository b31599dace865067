"""What do the folders of two runs of one experiment say: rewards, trained tasks, losses, and how far do they differ?"""

import hashlib
import json
import operator
import re
import statistics
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from envs.json_lines import JsonObject, read_lines
from envs.rollout_file import read_rollouts
from rl.config.read import load_config
from rl.runs.folder import RunFolder

IS_UP = re.compile(
    r"^\S+ \S+ (learner(?: rank \d+)?|worker) (\d+) INFO .*: the (?:learner holds|engine serves)", re.MULTILINE
)
Rewards = Mapping[str, Sequence[float | None]]
"""Of each held-out task, by environment; None if none of its rollouts counts."""


def figures(run_dir: Path) -> dict[str, Any]:
    """All that is compared, and what happened to the run."""
    train = load_config(run_dir / "config.yaml").train
    notes = [line["text"] for line in lines(run_dir, "note")]
    times = [line["time"] for line in lines(run_dir, "evaluation")]
    trained, story = trained_ordinals(run_dir), run_dir / "story.json"
    return {
        "before": rewards(run_dir, 0),
        "after": rewards(run_dir, train.num_steps),
        "replies": [digest(file) for file in RunFolder(run_dir).rollouts_files("train").values()],
        "grad_norms": [line["update/grad_norm"] for line in lines(run_dir, "train")],
        "num_trained": len(trained),
        "is_each_task_trained_once": sorted(trained) == list(range(train.num_steps * train.num_prompts)),
        "learner_restarts": [note for note in notes if note.startswith("the learner died and was started again")],
        "engines_replaced": [note.partition(" died")[0] for note in notes if "died and is replaced" in note],
        "seconds": times[-1] - times[0],
        "story": json.loads(story.read_text()) if story.is_file() else {},
    }


def lines(run_dir: Path, kind: str) -> list[JsonObject]:
    return [line for line in read_lines(RunFolder(run_dir).metrics_file) if line["kind"] == kind]


def num_steps(run_dir: Path) -> int:
    """Steps so far. The last line may still be being written."""
    file = RunFolder(run_dir).metrics_file
    return file.read_bytes().count(b'"kind": "train"') if file.is_file() else 0


def rewards(run_dir: Path, step: int) -> dict[str, list[float | None]]:
    """The mean reward of each held-out task at this step, in the order of tasks."""
    tasks: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for rollout in read_rollouts(RunFolder(run_dir).rollouts_file(step, "evaluation")):
        task = tasks[rollout["task"]["env_id"]][rollout["task"]["ordinal"]]
        task += [] if rollout["reward"] is None else [rollout["reward"]]
    return {
        env_id: [statistics.fmean(task) if task else None for _, task in sorted(of_env.items())]
        for env_id, of_env in tasks.items()
    }


def trained_ordinals(run_dir: Path) -> list[int]:
    """One entry for each time that a group was trained."""
    rollouts = (one for file in RunFolder(run_dir).rollouts_files("train").values() for one in read_rollouts(file))
    return [rollout["task"]["ordinal"] for rollout in rollouts if rollout["member"] == 0]


def digest(file: Path) -> str:
    """Of all tokens that were sampled for one step, and of their rewards."""
    rollouts = [
        (one["group_id"], one["member"], one["reward"], [turn["reply"]["ids"] for turn in one["turns"]])
        for one in read_rollouts(file)
    ]
    return hashlib.sha256(json.dumps(sorted(rollouts)).encode()).hexdigest()[:16]


def actors(run_dir: Path) -> dict[str, int]:
    """Process ids of the living ranks and workers of a run, by what they are."""
    log = run_dir / "run.log"
    found = IS_UP.findall(log.read_text(errors="replace")) if log.is_file() else []
    named = {f"worker {pid}" if name == "worker" else name: int(pid) for name, pid in found}
    return {name: pid for name, pid in sorted(named.items()) if psutil.pid_exists(pid)}


def compared(one: Mapping[str, Any], two: Mapping[str, Any]) -> dict[str, Any]:
    """The summary of two runs' figures: `two_less_one` is the difference after training, by task."""
    pairs = {env_id: list(zip(rewards, one["after"][env_id], strict=True)) for env_id, rewards in two["after"].items()}
    differences = {
        env_id: [after - other if after is not None and other is not None else None for after, other in pairs[env_id]]
        for env_id in pairs
    }
    norms = list(zip(one["grad_norms"], two["grad_norms"], strict=True))
    return {
        "one": {"before": scores(one["before"]), "after": scores(one["after"]), "seconds": one["seconds"]},
        "two": {
            "before": scores(two["before"]),
            "after": scores(two["after"]),
            "seconds": two["seconds"],
            "num_trained": two["num_trained"],
            "is_each_task_trained_once": int(two["is_each_task_trained_once"]),
            "num_learner_restarts": len(two["learner_restarts"]),
            "num_engines_replaced": len(two["engines_replaced"]),
        },
        "two_less_one": scores(differences),
        "num_steps_with_equal_replies": sum(map(operator.eq, one["replies"], two["replies"])),
        "largest_relative_difference_of_grad_norms": max(abs(a - b) / max(a, b, sys.float_info.min) for a, b in norms),
    }


def scores(by_task: Rewards) -> dict[str, dict[str, float]]:
    """Mean and standard error of it by environment, clustered by task, and of the mean over environments."""
    found = {env_id: _score([value for value in values if value is not None]) for env_id, values in by_task.items()}
    mean = statistics.fmean(one["mean"] for one in found.values())
    stderr = sum(one["stderr"] ** 2 for one in found.values()) ** 0.5 / len(found)
    return {**found, "mean": {"mean": mean, "stderr": stderr}}


def _score(values: Sequence[float]) -> dict[str, float]:
    return {"mean": statistics.fmean(values), "stderr": statistics.stdev(values) / len(values) ** 0.5}
