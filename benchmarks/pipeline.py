"""How fast are the parts on this machine? Supervised tokens/s, sampled tokens/s, publishing against a memory copy.

    python -m benchmarks.pipeline --out benchmarks/results/pipeline.json     (about three minutes, one core)

Takes the quickstart's policy. Everything runs in this process, one thread, one part after the other; each figure is the
median of its repetitions, and the raw numbers are kept.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import asyncio
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from rl.chat.budget import ThinkingLimit
from rl.config.experiment import ExperimentConfig
from rl.config.read import load_config
from rl.engine.protocol import SamplingParams
from rl.weights.source import WeightSource

NUM_IN_FLIGHT = 64
NUM_REPLY_TOKENS = 96
NUM_REPEATS = 5
NEVER_REACHED = ThinkingLimit(NUM_REPLY_TOKENS, 0, (1,), 1, frozenset(range(64)))
"""A thinking budget that is watched in every step and forces nothing, so that equal tokens are sampled."""


def main(out: Annotated[Path, typer.Option(help="JSON file to write.")]) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        overrides = [f"run_dir={folder}", "sft.num_steps=120", "sft.num_conversations=4000"]
        config = load_config(Path("experiments/quickstart.yaml"), overrides)
        results: dict[str, Any] = {"machine": machine(), "supervised": supervised(config)}
        results |= asyncio.run(engine(config))
    results["summary"] = summary(results)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results["summary"], indent=2))


def machine() -> dict[str, Any]:
    return {"cpus": os.cpu_count(), "processor": platform.processor() or platform.machine(), "torch": torch.__version__}


def supervised(config: ExperimentConfig) -> dict[str, Any]:
    """Trained tokens/s of every logged step; padding does not count."""
    from sft.train import run

    metrics = (run(config) / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in metrics]
    return {"tokens_per_s": [step["tokens_per_s"] for step in steps[10:]]}


async def engine(config: ExperimentConfig) -> dict[str, Any]:
    """Sampled tokens/s with 64 in flight, and seconds to publish the policy's weights."""
    from transformers import AutoModelForCausalLM

    from rl.engine.vllm_core import VllmEngine

    policy = config.run_dir / "sft"
    served = VllmEngine(policy, config, lockstep_steps=0)
    try:
        rates, rates_with_budget = [], []
        for repeat in range(NUM_REPEATS):  # in turns, so that both see the same machine
            rates.append(await sample(served, config, repeat, None))
            rates_with_budget.append(await sample(served, config, repeat, NEVER_REACHED))
        model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32)
        publishing = [await publish(served, model, version) for version in range(1, NUM_REPEATS * 2 + 1)]
    finally:
        served.shutdown()
    return {
        "sampled_tokens_per_s": rates,
        "sampled_tokens_per_s_with_budget": rates_with_budget,
        "publishing": publishing,
    }


async def sample(served: Any, config: ExperimentConfig, repeat: int, limit: ThinkingLimit | None) -> float:
    params = [
        SamplingParams(NUM_REPLY_TOKENS, 1.0, 1.0, seed=repeat * NUM_IN_FLIGHT + index, stop_ids=(), thinking=limit)
        for index in range(NUM_IN_FLIGHT)
    ]
    lanes = served.open_lanes(NUM_IN_FLIGHT)
    started = time.perf_counter()
    replies = await asyncio.gather(*(lane.sample(range(5, 35), one) for lane, one in zip(lanes, params, strict=True)))
    seconds = time.perf_counter() - started
    for lane in lanes:
        lane.close()
    return sum(len(reply.tokens) for reply in replies) / seconds


async def publish(served: Any, model: Any, version: int) -> dict[str, float]:
    """Seconds to write a version, to load it, and to copy the same bytes from memory to memory."""
    from rl.weights.names import checkpoint_tensors
    from rl.weights.shared_memory import remove_weights, write_weights

    started = time.perf_counter()
    source: WeightSource = write_weights(checkpoint_tensors(model, "float32"), version)
    written = time.perf_counter()
    assert await served.load_weights(source) == source.hash
    loaded = time.perf_counter()
    num_bytes = Path(source.place).stat().st_size
    remove_weights(source)
    block = torch.empty(num_bytes, dtype=torch.uint8).fill_(1)
    copy = torch.empty_like(block).fill_(0)
    copying = time.perf_counter()
    copy.copy_(block)
    copied = time.perf_counter()
    return {"write_s": written - started, "load_s": loaded - written, "copy_s": copied - copying, "bytes": num_bytes}


def summary(results: dict[str, Any]) -> dict[str, float]:
    publishing = results["publishing"]
    total = statistics.median(one["write_s"] + one["load_s"] for one in publishing)
    copy = statistics.median(one["copy_s"] for one in publishing)
    rates, with_budget = results["sampled_tokens_per_s"], results["sampled_tokens_per_s_with_budget"]
    return {
        "supervised_tokens_per_s": statistics.median(results["supervised"]["tokens_per_s"]),
        "sampled_tokens_per_s": statistics.median(rates),
        "with_budget_by_without": statistics.median(w / r for w, r in zip(with_budget, rates, strict=True)),
        "publish_s": total,
        "copy_s": copy,
        "publish_s_less_3_copies": total - 3 * copy,
    }


if __name__ == "__main__":
    typer.run(main)
