"""How is a policy evaluated? `python -m rl evaluate` plays tasks with a policy folder or a run's newest checkpoint."""

import contextlib
import dataclasses
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from envs.sandbox import require_level
from envs.text_env import Split
from rl.checks import check_judge, store_bytes
from rl.cluster.actors import ActorDied
from rl.cluster.address import ClusterError
from rl.cluster.cluster import cluster
from rl.cluster.reserve import Places
from rl.config.checkpoint_files import copy_chat
from rl.config.experiment import ExperimentConfig
from rl.config.read import ConfigError
from rl.config.saved_policy import base_of, is_adapter
from rl.data_types import Budget, Group, Task
from rl.learner.group import LearnerGroup
from rl.policy_checks import check_policy
from rl.precision.formats.bf16 import Bf16
from rl.preflight import preflight
from rl.rollouts.collector import Collector
from rl.rollouts.judge import served_judge
from rl.rollouts.pool import WorkerPool
from rl.run_log import run_log
from rl.runs.evaluation import evaluation_metrics
from rl.runs.files import replacing, storing, write_atomically
from rl.runs.folder import RunFolder
from rl.runs.newest import newest_policy
from rl.runs.progress import ProgressLine
from rl.runs.report import write_report
from rl.runs.saved_rollouts import write_rollouts
from rl.runs.versions import start_line
from rl.stop import handled_signals
from rl.tasks.ledger import Ledger
from rl.tasks.stream import TaskStream, evaluation_tasks

SEVERAL = ("pass_at_", "majority")
"""How metrics begin that evaluations with several rollouts a task have."""
DIGITS = {"reply_tokens": 1, "thinking_tokens": 1, "num": 0, "failed": 0}


def evaluate_policy(
    config: ExperimentConfig, policy: Path | None, budgets: Sequence[Budget] = (), split: Split = "heldout"
) -> dict[str, dict[str, float]]:
    """Metrics per environment, printed as a table; for held-out tasks also written to `<run_dir>/evaluation.json`.

    With `budgets`, every task is played with each budget, which is a key of the result; else the only key is `own`.
    Rollouts are written to `<run_dir>/evaluation/rollouts.jsonl` while they are played.
    """
    require_level(config.rollout.sandbox_level)
    config = without_curricula(config)
    preflight(config)
    check_judge(config)
    policy = policy or newest_policy(config)
    if not (policy / "config.json").is_file() and not is_adapter(policy):
        raise ConfigError(f"--policy: {policy} is not the folder of a Hugging Face checkpoint (no config.json)")
    tasks = evaluation_tasks(config.environments, config.evaluation.num_tasks, split)
    asked = {str(budget): [dataclasses.replace(task, budget=budget) for task in tasks] for budget in budgets}
    run = RunFolder(config.run_dir)
    with storing(run.path):
        run.path.mkdir(parents=True, exist_ok=True)
    with run_log(run.path, "driver", start_line()), whole_policy(policy, config) as (served, config):
        played = play_with_engines(without_learner(config), served, run, asked or {"own": tasks})
    metrics = {budget: evaluation_metrics(groups) for budget, groups in played.items()}
    if split == "heldout":
        write_atomically(run.evaluation_file, json.dumps({"policy": str(policy), "budgets": metrics}, indent=2) + "\n")
    for budget, values in metrics.items():
        print_table(f"{split} tasks, {policy}" + (f", thinking budget {budget}" if budgets else ""), values)
    if budgets and split == "heldout":
        Console().print(f"report: {write_report(run.path)}", soft_wrap=True)
    return metrics


@contextlib.contextmanager
def whole_policy(policy: Path, config: ExperimentConfig) -> Iterator[tuple[Path, ExperimentConfig]]:
    """The folder of whole weights that engines serve, checked, and the experiment to evaluate it: without an adapter.

    An adapter is merged into its base, in a folder that exists as long as the context. Merged weights are served as
    they are, also beside a quantised base. Raises `ConfigError`.
    """
    config = config.model_copy(update={"learner": config.learner.model_copy(update={"adapter": None})})
    with contextlib.ExitStack() as stack:
        if is_adapter(policy):
            from rl.learner.served import write_served

            config.run_dir.mkdir(parents=True, exist_ok=True)  # read on the engines' node too, unlike the system's /tmp
            merged = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="merged_", dir=config.run_dir)))
            for checkpoint in (base_of(policy).path, policy):
                copy_chat(checkpoint, merged)
            write_served(policy, merged, config.precision)
            policy = merged
            if config.precision.is_quantised:
                config = config.model_copy(update={"precision": Bf16()})
        check_policy(policy, config)
        yield policy, config.model_copy(update={"teachers": {}})  # which only score what is trained


def without_curricula(config: ExperimentConfig) -> ExperimentConfig:
    """The experiment without curricula: evaluations, and so profiles, use new tasks. Sets of options are kept."""
    plain = {
        env_id: one if one.curriculum and one.curriculum.option_sets else one.model_copy(update={"curriculum": None})
        for env_id, one in config.environments.items()
    }
    return config.model_copy(update={"environments": plain})


def with_values(config: ExperimentConfig, section: str, **changes: object) -> ExperimentConfig:
    """The configuration with other values in one section, which a YAML could not have, and `ray.placement: separate`:
    nothing shares a card.
    """
    changed = getattr(config, section).model_copy(update=changes)
    ray = config.ray.model_copy(update={"placement": "separate"})
    return config.model_copy(update={section: changed, "ray": ray})


def without_learner(config: ExperimentConfig) -> ExperimentConfig:
    """The experiment without what only training needs: the record of experts, and places for a learner if none has to
    quantise the policy.
    """
    config = config.model_copy(update={"learner": config.learner.model_copy(update={"routing_replay": False})})
    return config if config.precision.is_quantised else with_values(config, "learner", num_ranks=0)


def play_with_engines(
    config: ExperimentConfig, policy: Path, run: RunFolder, asked: Mapping[str, Sequence[Task]]
) -> dict[str, list[Group]]:
    """The groups of all tasks by name, played by engines that are started for it."""
    with contextlib.ExitStack() as stack:
        joined = stack.enter_context(cluster(config, policy, store_bytes(config, policy)))
        stack.enter_context(handled_signals())
        variables = stack.enter_context(served_judge(config, joined.places.judges))
        pool = WorkerPool(config, policy, joined.places.engines, variables=variables)
        try:
            pool.wait_until_ready()
            if config.precision.is_quantised:
                serve_quantised(config, policy, pool, joined.places)
            stream = TaskStream(config.environments, config.seed, config.train.num_prompts)
            played = play_all(Collector(config, pool, stream, Ledger()), run, asked)
            for note in pool.notes():
                Console().print(note, markup=False, soft_wrap=True)
            return played
        except ActorDied as error:
            raise ClusterError(f"an engine or the learner failed to start: {error}") from error
        finally:
            pool.shutdown()


def play_all(collector: Collector, run: RunFolder, asked: Mapping[str, Sequence[Task]]) -> dict[str, list[Group]]:
    """The groups of all tasks by name. Rollouts are written while they are played; they replace those of an earlier
    evaluation when all are there.
    """
    played: dict[str, list[Group]] = {name: [] for name in asked}
    path = run.evaluation_rollouts_file
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file, ProgressLine("evaluated", sum(map(len, asked.values())), transient=True) as progress:
        for name, tasks in asked.items():
            for groups in collector.evaluate(tasks):
                with storing(path):
                    write_rollouts(file, 0, "evaluation", groups)
                played[name] += groups
                progress.update(sum(map(len, played.values())))
    return played


def serve_quantised(config: ExperimentConfig, policy: Path, pool: WorkerPool, places: Places) -> None:
    """Quantise this checkpoint as a learner does, and load it into the engines."""
    learner = LearnerGroup(config, policy, places=places.learner)
    try:
        learner.describe()
        pool.load_weights(learner.publish())
        pool.wait_until_loaded()
    finally:
        learner.shutdown()


def print_table(title: str, metrics: dict[str, float]) -> None:
    table = Table(title=title)
    several = dict.fromkeys(part for part in (name.split("/")[0] for name in metrics) if part.startswith(SEVERAL))
    thinking = ["thinking_tokens"] if any(metrics[name] for name in metrics if name.startswith("thinking_")) else []
    parts = ("reward", "stderr", "low", "high", "accuracy", *several, "reply_tokens", *thinking, "num", "failed")
    table.add_column("environment")
    for part in parts:
        table.add_column(
            {"stderr": "+-", "num": "rollouts"}.get(part, part.replace("_tokens", " tokens")), justify="right"
        )
    for env_id in [name.removeprefix("num/") for name in metrics if name.startswith("num/")]:
        values = {part: metrics.get(f"{part}/{env_id}") for part in parts}
        shown = ("-" if value is None else f"{value:.{DIGITS.get(part, 3)}f}" for part, value in values.items())
        table.add_row(env_id, *shown)
    Console().print(table)
