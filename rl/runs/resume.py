"""May a run be resumed with this configuration, and are its files complete?"""

from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path

from envs.json_lines import JsonObject, read_lines
from rl.config.experiment import ExperimentConfig
from rl.config.saved_policy import BaseError, check_base, is_adapter
from rl.runs.checkpoint import Checkpoint

MAY_CHANGE = (
    "run_dir",
    "train.num_steps",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.save_policy_every",
    "train.save_rollouts_every",
    "train.keep_rollouts",
    "train.num_learner_restarts",
    "train.*_timeout_s",
    "rollout.*_timeout_s",
    "rollout.num_workers",
    "rollout.cpus_per_worker",
    "rollout.gpus_per_worker",
    "rollout.gpu_memory_share",
    "rollout.kv_cache_gib",
    "rollout.num_env_threads",
    "rollout.num_env_processes",
    "rollout.env_memory_mib",
    "environments.*.process",
    "learner.num_ranks",
    "learner.expert_parallel",
    "learner.exchange",
    "learner.activation_checkpointing",
    "learner.offload_moments",
    "learner.compile",
    "teachers.*.num_engines",
    "judge.max_in_flight",
    "judge.kv_cache_gib",
    "learner.cpus",
    "learner.gpus",
    "evaluation.every",
    "canaries.*",
    "weights.*",
    "ray.*",
    "tracking",
)
"""Keys that may differ when a run is resumed: how far and where it runs, not what it computes.

The last bits may change: `rollout.num_workers` decides which rollouts share a batch. Two more depend on the run:
`train.num_steps` may change under a constant learning rate only, and `policy.path` once there is a checkpoint.
"""
ORDERED = ("environments", "environments.*.budget")
"""Mappings whose order decides which tasks are drawn (`rl.tasks`): the environment named first wins a tie, and one
random number chooses among budgets as they are listed."""
ORDER = " (order)"
"""Added to the key of such a mapping, for the key under which its order is compared."""


def differences(saved: ExperimentConfig, given: ExperimentConfig, newest: Checkpoint | None) -> list[str]:
    """Changed keys that do not allow resuming with `given`, one line per key."""
    before, now = _flat(saved), _flat(given)
    return [
        f"{key}: was {_shown(before, key)}, now {_shown(now, key)}{reason}"
        for key in changed_keys(saved, given)
        if (reason := _objection(key, saved, given, newest)) is not None
    ]


def recomputed(saved: ExperimentConfig, given: ExperimentConfig) -> list[str]:
    """Changed keys with which a run that has ended would have computed something else, one line per key."""
    before, now = _flat(saved), _flat(given)
    return [
        f"{key}: was {_shown(before, key)}, now {_shown(now, key)}"
        for key in changed_keys(saved, given)
        if key == "train.num_steps" or not any(fnmatch(key, pattern) for pattern in MAY_CHANGE)
    ]


def changed_keys(saved: ExperimentConfig, given: ExperimentConfig) -> list[str]:
    """The keys whose values differ, in alphabetical order; `KEY (order)` if only the order of a mapping does."""
    before, now = _flat(saved), _flat(given)
    changed = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    return [key for key in changed if not key.endswith(ORDER) or set(before.get(key, ())) == set(now.get(key, ()))]


def _objection(key: str, saved: ExperimentConfig, given: ExperimentConfig, newest: Checkpoint | None) -> str | None:
    """The reason why this key may not change, which may be empty; None if it may change."""
    if key == "train.num_steps" and saved.learner.schedule != "constant":
        return (
            f"; the learning rate falls to 0 at the last step ({saved.learner.schedule} schedule), so with another last"
            " step it would jump, and the steps so far would have had another rate"
        )
    if key == "policy.path" and newest is not None and given.policy.path is not None:
        if _tokenizer(newest.policy) != _tokenizer(given.policy.path):
            return "; its tokenizer is not the one that the checkpoint was trained with"
        return _base_objection(newest.policy, given.policy.path)
    if key.endswith(ORDER):
        return "; other tasks would be drawn"
    return None if any(fnmatch(key, pattern) for pattern in MAY_CHANGE) else ""


def _base_objection(policy: Path, path: Path) -> str | None:
    """The reason why a checkpoint's adapter cannot go on beside the policy at this path, if there is one."""
    try:
        if is_adapter(policy):
            check_base(policy, path)
    except BaseError as error:
        return f"; {error}"
    return None


def remarks(
    saved: ExperimentConfig, given: ExperimentConfig, metrics_file: Path, newest: Checkpoint | None
) -> list[str]:
    """Warnings for the user who resumes the run, one sentence each."""
    found = []
    if saved.policy.path != given.policy.path:
        found.append(
            f"policy.path was {saved.policy.path} and is {given.policy.path}: weights are those of the checkpoint, and"
            " a reference policy would be the one that lies there"
        )
    written = {line.get("step") for line in read_lines(metrics_file) if line.get("kind") == "train"}
    missing = [step for step in range(1, newest.step + 1) if step not in written] if newest else []
    if missing:
        found.append(
            f"{metrics_file} lacks {_ranges(missing)} of the {newest.step if newest else 0} steps in the checkpoint"
            " (a power cut may take what was not on the disk yet): the policy includes these steps, the report does not"
        )
    return found


def _tokenizer(folder: Path) -> bytes | None:
    file = folder / "tokenizer.json"
    return file.read_bytes() if file.is_file() else None


def _ranges(numbers: list[int]) -> str:
    """Increasing integers in words: `step 3, 5 to 7`."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    words = [str(part[0]) if len(part) == 1 else f"{part[0]} to {part[-1]}" for part in parts]
    return ("step " if len(numbers) == 1 else "steps ") + ", ".join(words)


def _flat(config: ExperimentConfig) -> JsonObject:
    def walk(tree: JsonObject, prefix: str) -> Iterator[tuple[str, object]]:
        for key, value in tree.items():
            if isinstance(value, Mapping) and value:
                if any(fnmatch(f"{prefix}{key}", pattern) for pattern in ORDERED):
                    yield f"{prefix}{key}{ORDER}", list(value)
                yield from walk(value, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}", value

    return dict(walk(config.model_dump(mode="json"), ""))


def _shown(flat: JsonObject, key: str) -> str:
    return repr(flat[key]) if key in flat else "not there"
