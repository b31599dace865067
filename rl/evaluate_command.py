"""`python -m rl evaluate`: play held-out tasks with a policy folder or a run's newest checkpoint."""

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rl.cluster.cluster import ActorDied, ClusterError, cluster
from rl.config import ExperimentConfig
from rl.config_file import ConfigError
from rl.evaluate import evaluation_metrics
from rl.preflight import preflight
from rl.rollouts.collector import Collector
from rl.rollouts.pool import WorkerPool
from rl.runs.checkpoint import latest_checkpoint
from rl.stop import handled_signals
from rl.tasks.ledger import Ledger
from rl.tasks.stream import TaskStream, heldout_tasks


def evaluate_policy(config: ExperimentConfig, policy: Path | None) -> dict[str, float]:
    """Metrics by environment, printed as a table and written to `<run_dir>/evaluation.json`."""
    preflight(config)
    policy = policy or newest_policy(config)
    if not (policy / "config.json").is_file():
        raise ConfigError(f"--policy: {policy} is no folder of a Hugging Face checkpoint (it has no config.json)")
    with cluster(config), handled_signals():
        pool = WorkerPool(config, policy)
        try:
            pool.wait_until_ready()
            collector = Collector(config, pool, TaskStream(config.environments, config.seed), Ledger())
            groups = collector.evaluate(heldout_tasks(config.environments, config.evaluation.num_tasks))
        except ActorDied as error:
            raise ClusterError(f"an engine failed to start: {error}") from error
        finally:
            pool.shutdown()
    metrics = evaluation_metrics(groups)
    config.run_dir.mkdir(parents=True, exist_ok=True)
    (config.run_dir / "evaluation.json").write_text(json.dumps({"policy": str(policy), **metrics}, indent=2) + "\n")
    print_table(policy, metrics)
    return metrics


def newest_policy(config: ExperimentConfig) -> Path:
    """The run's newest checkpoint, else its supervised policy, else `policy.path`."""
    checkpoint = latest_checkpoint(config.run_dir / "checkpoints")
    candidates = [checkpoint.learner / "model" if checkpoint else None, config.run_dir / "sft", config.policy.path]
    for candidate in candidates:
        if candidate is not None and candidate.exists():
            return candidate
    raise ConfigError(f"run_dir: {config.run_dir} holds no policy yet; train first, or name one with --policy")


def print_table(policy: Path, metrics: dict[str, float]) -> None:
    table = Table(title=f"held-out tasks, {policy}")
    for column in ("environment", "reward", "+-", "accuracy", "reply tokens", "rollouts", "failed"):
        table.add_column(column, justify="left" if column == "environment" else "right")
    for name in [name.removeprefix("num/") for name in metrics if name.startswith("num/")]:
        row = [metrics.get(f"{part}/{name}", float("nan")) for part in ("reward", "stderr", "accuracy", "reply_tokens")]
        table.add_row(
            name,
            *(f"{value:.3f}" for value in row[:3]),
            f"{row[3]:.1f}",
            f"{metrics[f'num/{name}']:.0f}",
            f"{metrics[f'failed/{name}']:.0f}",
        )
    Console().print(table)
