"""How fast are the parts on this machine? Supervised tokens/s, sampled tokens/s, publishing against a memory copy.

    python -m benchmarks.pipeline --out benchmarks/results/pipeline.json     (about three minutes, one core)

Takes the quickstart's policy. Everything runs in this process, one thread, one part after the other; each figure is the
median of its repetitions, and the raw numbers are kept.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import asyncio
import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from transformers import PreTrainedModel

from benchmarks.report import write_report
from rl.chat.budget import ThinkingLimit
from rl.config.experiment import ExperimentConfig
from rl.config.read import load_config
from rl.engine.protocol import Engine, SamplingParams
from rl.weights.source import WeightSource

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured, and how often."""

    num_steps: int = 120
    """Of the supervised stage."""
    num_uncounted_steps: int = 10
    """Steps at the stage's start whose speed does not count."""
    num_conversations: int = 4000
    num_in_flight: int = 64
    num_reply_tokens: int = 96
    num_repeats: int = 5


FULL = Size()
SHORT = Size(
    num_steps=2, num_uncounted_steps=1, num_conversations=200, num_in_flight=2, num_reply_tokens=4, num_repeats=1
)


def main(
    out: Annotated[Path, typer.Option(help="JSON file to write.")],
    short: Annotated[bool, typer.Option(help="Few steps and replies, once; only to see that it runs.")] = False,
) -> None:
    torch.set_num_threads(1)
    size = SHORT if short else FULL
    with tempfile.TemporaryDirectory() as folder:
        overrides = {
            "run_dir": folder,
            "weights": "shared_memory",
            "sft.num_steps": size.num_steps,
            "sft.num_conversations": size.num_conversations,
        }
        config = load_config(
            ROOT / "experiments/quickstart.yaml", [f"{key}={value}" for key, value in overrides.items()]
        )
        results = {"supervised": supervised(config, size), **asyncio.run(engine(config, size))}
    write_report(out, summary(results), torch=torch.__version__, **results)


def supervised(config: ExperimentConfig, size: Size) -> dict[str, Any]:
    """Trained tokens/s of every logged step; padding does not count."""
    from sft.train import run

    metrics = (run(config) / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in metrics]
    return {"tokens_per_s": [step["tokens_per_s"] for step in steps[size.num_uncounted_steps :]]}


async def engine(config: ExperimentConfig, size: Size) -> dict[str, Any]:
    """Sampled tokens/s with many in flight, and seconds to publish the policy's weights."""
    from transformers import AutoModelForCausalLM

    from rl.engine.vllm_core import VllmEngine

    policy = config.run_dir / "sft"
    served = VllmEngine(policy, config, lockstep_steps=0)
    try:
        rates, rates_with_budget = [], []
        for repeat in range(size.num_repeats):  # in turns, so that both see the same machine
            rates.append(await sample(served, size, repeat, None))
            rates_with_budget.append(await sample(served, size, repeat, never_reached(size)))
        model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32)
        publishing = [await publish(served, model, version) for version in range(1, size.num_repeats * 2 + 1)]
    finally:
        served.shutdown()
    return {
        "sampled_tokens_per_s": rates,
        "sampled_tokens_per_s_with_budget": rates_with_budget,
        "publishing": publishing,
    }


def never_reached(size: Size) -> ThinkingLimit:
    """A thinking budget that is watched in every step and forces nothing, so that equal tokens are sampled."""
    return ThinkingLimit(size.num_reply_tokens, 0, (1,), 1, frozenset(range(64)))


async def sample(served: Engine, size: Size, repeat: int, limit: ThinkingLimit | None) -> float:
    """Sampled tokens per second."""
    first_seed = repeat * size.num_in_flight
    params = [
        SamplingParams(size.num_reply_tokens, 1.0, 1.0, seed=first_seed + index, stop_ids=(), thinking=limit)
        for index in range(size.num_in_flight)
    ]
    lanes = served.open_lanes(size.num_in_flight)
    await asyncio.gather(*(lane.seated() for lane in lanes))
    started = time.perf_counter()
    replies = await asyncio.gather(*(lane.sample(range(5, 35), one) for lane, one in zip(lanes, params, strict=True)))
    seconds = time.perf_counter() - started
    for lane in lanes:
        lane.close()
    return sum(len(reply.tokens) for reply in replies) / seconds


async def publish(served: Engine, model: PreTrainedModel, version: int) -> dict[str, float]:
    """Seconds to write a version, to load it, and to copy the same bytes from memory to memory."""
    from rl.weights.names import checkpoint_tensors
    from rl.weights.shared_memory import remove_weights, write_weights

    started = time.perf_counter()
    source: WeightSource = write_weights(checkpoint_tensors(model, "float32"), version)
    written = time.perf_counter()
    assert await served.load_weights(source) == source.hash
    loaded = time.perf_counter()
    num_bytes = Path(str(source.place)).stat().st_size
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
