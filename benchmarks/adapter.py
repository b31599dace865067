"""What does a low-rank adapter save? Memory of the learner, published bytes, and seconds of training and publishing.

    python -m benchmarks.adapter --out benchmarks/results/adapter.json     (about ten minutes, two cores)

Each way to train SmolLM2-135M runs in a process of its own, one after the other: updates on random tokens, then
published versions that an engine in that process loads. Figures are medians of the repetitions; raw numbers are kept.
"""

import os

os.environ["OMP_NUM_THREADS"] = "2"

import asyncio
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from benchmarks.report import write_report
from rl.config.experiment import ExperimentConfig
from rl.data_types import Sample
from rl.learner.samples import JoinedSamples
from rl.tokens import Tokens

if TYPE_CHECKING:
    from rl.learner.learner import Learner

WAYS: Mapping[str, Mapping[str, Any]] = {
    "all_weights": {"precision": "bf16"},
    "adapter_merged": {"precision": "bf16", "adapter": {"publish": "merged"}},
    "adapter_float32": {"precision": "float32", "adapter": {}},
    "adapter": {"precision": "bf16", "adapter": {}},
    "adapter_nvfp4": {"precision": "nvfp4", "adapter": {}},
}


@dataclass(frozen=True, slots=True)
class Size:
    """How much is trained, and how often."""

    num_rows: int = 16
    num_tokens: int = 512
    """Of each row; the second half is trained."""
    num_repeats: int = 5


FULL = Size()
SHORT = Size(num_rows=1, num_tokens=16, num_repeats=1)


def main(
    out: Annotated[Path, typer.Option(help="JSON file to write.")],
    policy: Annotated[Path, typer.Option(help="Policy folder.")] = Path("models/smollm2-135m"),
    short: Annotated[bool, typer.Option(help="One row, once; only to see that it runs.")] = False,
    way: Annotated[str, typer.Option(help="Only this way, measured in this process.", hidden=True)] = "",
) -> None:
    if way:
        out.write_text(json.dumps(measure(experiment(policy, way), SHORT if short else FULL)))
        return
    raw: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in WAYS:
            part = Path(folder) / f"{name}.json"
            options = ["--policy", str(policy), "--way", name, "--out", str(part), *(["--short"] if short else [])]
            subprocess.run([sys.executable, "-m", "benchmarks.adapter", *options], check=True)
            raw[name] = json.loads(part.read_text())
    write_report(out, summarised(raw), policy=str(policy), raw=raw)


def summarised(raw: Mapping[str, Mapping[str, list[float]]]) -> dict[str, dict[str, float]]:
    return {way: {name: statistics.median(values) for name, values in parts.items()} for way, parts in raw.items()}


def experiment(policy: Path, way: str) -> ExperimentConfig:
    tree = {
        "run_dir": tempfile.gettempdir(),
        "seed": 0,
        "weights": "shared_memory",
        "policy": {"path": str(policy), "chat": "template", "max_tokens": 512},
        "precision": WAYS[way]["precision"],
        "environments": {"math/Arithmetic-v0": {}},
        "learner": {"cpus": 2, "adapter": WAYS[way].get("adapter")},
        "rollout": {"max_in_flight": 2, "kv_cache_gib": 0.25},
        "train": {"num_steps": 100},
    }
    return ExperimentConfig.model_validate(tree)


def measure(config: ExperimentConfig, size: Size) -> dict[str, list[float]]:
    """Repetitions of each figure. The engine starts last, so that it is not in the learner's memory."""
    from rl.engine.vllm_core import VllmEngine
    from rl.learner.actor import LearnerProcess

    policy = config.policy.path
    assert policy is not None
    process = LearnerProcess(config, policy)
    process.start()
    samples = JoinedSamples.join(random_samples(size))
    process.update(samples)  # not counted: memory is allocated
    updates = [process.update(samples)[0] for _ in range(size.num_repeats)]
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    first = process.publish()
    base_bytes = _bytes(first.base.place) if first.base else 0
    engine = VllmEngine(policy, config, lockstep_steps=0)
    publish_s, load_s, num_bytes = [], [], []
    try:
        asyncio.run(engine.load_weights(first))  # not counted: it receives an adapter's base
        for _ in range(size.num_repeats):
            process.update(samples)
            started = time.perf_counter()
            source = process.publish()
            publish_s.append(time.perf_counter() - started)
            started = time.perf_counter()
            asyncio.run(engine.load_weights(source))
            load_s.append(time.perf_counter() - started)
            num_bytes.append(_bytes(source.place) / 2**20)
    finally:
        engine.shutdown()
        process.shutdown()
    return {
        "learner_held_mib": [held_bytes(process._learner) / 2**20],
        "learner_peak_gib": [peak_gib],
        "trained_tokens_per_s": [update.num_row_tokens / update.seconds for update in updates],
        "published_base_mib": [base_bytes / 2**20],
        "published_mib": num_bytes,
        "publish_s": publish_s,
        "engine_load_s": load_s,
    }


def held_bytes(learner: "Learner") -> int:
    """Of weights, gradients, AdamW's moments, and the codes of a quantised format."""
    weights = list(learner.model.parameters())
    gradients = [weight for weight in weights if weight.requires_grad]
    moments = [tensor for state in learner._optimizer.state.values() for tensor in state.values()]
    codes = [part for parts in learner.folded.quantised.values() for part in parts.values()]
    return sum(tensor.nbytes for tensor in (*weights, *gradients, *moments, *codes))


def random_samples(size: Size) -> list[Sample]:
    rng = np.random.default_rng(0)
    half = size.num_tokens // 2
    samples = []
    for row in range(size.num_rows):
        ids = rng.integers(1000, 10_000, size.num_tokens).tolist()
        columns = {"logprob": [-10.0] * half, "version": [0] * half}
        reply = Tokens.make(ids[half:], [True] * half, columns)
        samples.append(
            Sample("math/Arithmetic-v0", Tokens.joined([Tokens.unsampled(ids[:half]), reply]), (-1.0) ** row)
        )
    return samples


def _bytes(place: object) -> int:
    return Path(str(place)).stat().st_size


if __name__ == "__main__":
    typer.run(main)
