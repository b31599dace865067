"""What do several ranks of the learner bring on one machine? Trained tokens and seconds of publishing.

    python -m benchmarks.ranks --out benchmarks/results/ranks.json     (about five minutes, two cores)

Learners of one and of two processes, one compute thread each, train the same random rows, one learner after the other.
Figures are medians of the repetitions; raw numbers are kept.
"""

import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.adapter import Size, random_samples
from benchmarks.report import write_report
from rl.checks import store_bytes
from rl.cluster.cluster import cluster
from rl.config.experiment import ExperimentConfig
from rl.learner.group import LearnerGroup

LEARNERS: Mapping[str, Mapping[str, object]] = {
    "one": {"num_ranks": 1},
    "two": {"num_ranks": 2},
    "two, exchange once a step": {"num_ranks": 2, "exchange": "step"},
}
FULL = Size(num_rows=32, num_tokens=256, num_repeats=3)
SHORT = Size(num_rows=4, num_tokens=16, num_repeats=1)
Raw = Mapping[str, list[float]]


def main(
    out: Annotated[Path, typer.Option(help="JSON file to write.")],
    policy: Annotated[Path, typer.Option(help="Policy folder.")] = Path("models/smollm2-135m"),
    precision: Annotated[str, typer.Option(help="Number format of the policy.")] = "bf16",
    short: Annotated[bool, typer.Option(help="Few rows, once; only to see that it runs.")] = False,
) -> None:
    size = SHORT if short else FULL
    raw = {name: measure(experiment(policy, precision, keys), policy, size) for name, keys in LEARNERS.items()}
    write_report(out, summarised(raw), policy=str(policy), precision=precision, raw=raw)


def summarised(raw: Mapping[str, Raw]) -> dict[str, dict[str, float]]:
    rate = statistics.median(raw["one"]["trained_tokens_per_s"])
    return {
        learner: {
            **{name: statistics.median(values) for name, values in parts.items()},
            "ratio_to_one": statistics.median(parts["trained_tokens_per_s"]) / rate,
            "publish_by_update": statistics.median(parts["publish_s"]) / statistics.median(parts["update_s"]),
        }
        for learner, parts in raw.items()
    }


def experiment(policy: Path, precision: str, keys: Mapping[str, object]) -> ExperimentConfig:
    tree = {
        "run_dir": tempfile.mkdtemp(prefix="polygym-ranks-"),
        "seed": 0,
        "policy": {"path": str(policy), "max_tokens": 256},
        "precision": precision,
        "environments": {"math/Arithmetic-v0": {}},
        "learner": {"tokens_per_micro_batch": 1024, **keys},
        "rollout": {"max_reply_tokens": 128},
        "train": {"num_steps": 100},
        "ray": {"address": "local"},
    }
    return ExperimentConfig.model_validate(tree)


def measure(config: ExperimentConfig, policy: Path, size: Size) -> dict[str, list[float]]:
    """Repetitions of each figure."""
    samples = random_samples(size)
    updates, publish_s = [], []
    with cluster(config, policy, store_bytes(config, policy)) as joined:
        group = LearnerGroup(config, policy, places=joined.places.learner)
        try:
            group.describe()
            group.update(samples)  # not counted: memory is allocated
            for _ in range(size.num_repeats):
                updates.append(group.update(samples))
                started = time.perf_counter()
                group.publish()
                publish_s.append(time.perf_counter() - started)
        finally:
            group.shutdown()
    return {
        "trained_tokens_per_s": [update.num_tokens / update.seconds for update in updates],
        "update_s": [update.seconds for update in updates],
        "publish_s": publish_s,
    }


if __name__ == "__main__":
    typer.run(main)
