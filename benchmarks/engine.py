"""How many tokens a second does one engine sample, with few and with many requests in flight?

    python -m benchmarks.engine --out benchmarks/results/engine.json     (about five minutes, two cores)

Random prompts; no reply ends before it is as long as asked, so the number in flight is constant. SmolLM2-135M on two
threads, the quickstart's tiny hybrid on one. With 2 in flight, an engine's step costs little but Python: this is the
end of a collection, when few long replies are left.
"""

import os

os.environ["OMP_NUM_THREADS"] = "2"

import asyncio
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from benchmarks.matched_forward import reply
from benchmarks.random_policies import untrained
from benchmarks.report import write_report
from rl.config.experiment import ExperimentConfig
from rl.cpu_bfloat16 import has_quick_bfloat16
from rl.engine.protocol import Engine, SamplingParams


@dataclass(frozen=True, slots=True)
class Case:
    """An engine, and how many requests it gets at once."""

    num_threads: int
    num_prompt_tokens: int
    num_reply_tokens: int
    nums_in_flight: tuple[int, ...]


CASES = {"smollm2": Case(2, 95, 96, (32,)), "tiny_hybrid": Case(1, 45, 256, (2, 8, 64))}
SHORT = Case(1, 4, 4, (2,))


def main(
    out: Annotated[Path, typer.Option(help="JSON file to write.")],
    policy: Annotated[Path, typer.Option(help="Policy folder.")] = Path("models/smollm2-135m"),
    precision: Annotated[str, typer.Option(help="Number format of that policy.")] = (
        "bf16" if has_quick_bfloat16() else "float32"
    ),
    repeats: Annotated[int, typer.Option(min=1, help="Counted repetitions.")] = 3,
    short: Annotated[bool, typer.Option(help="A few tokens, once; only to see that it runs.")] = False,
) -> None:
    raw: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        tiny = untrained(Path(folder) / "policy")
        for name, path, form in (("tiny_hybrid", tiny, "float32"), ("smollm2", policy, precision)):
            case = SHORT if short else CASES[name]
            for num, rates in measured(path, form, case, 1 if short else repeats):
                raw[f"{name}_{num}_in_flight"] = rates
    summary = {name: statistics.median(rates) for name, rates in raw.items()}
    write_report(out, summary, policy=str(policy), precision=precision, tokens_per_s=raw)


def measured(path: Path, precision: str, case: Case, repeats: int) -> Iterator[tuple[int, list[float]]]:
    """Sampled tokens a second of each repetition, by the number in flight. The first, not counted, allocates memory."""
    from rl.engine.vllm_core import VllmEngine

    os.environ["OMP_NUM_THREADS"] = str(case.num_threads)
    torch.set_num_threads(case.num_threads)
    engine = VllmEngine(path, experiment(path, precision, max(case.nums_in_flight)), lockstep_steps=0)
    try:
        for num in case.nums_in_flight:
            yield num, [asyncio.run(tokens_per_s(engine, case, num, seed)) for seed in range(repeats + 1)][1:]
    finally:
        engine.shutdown()


async def tokens_per_s(engine: Engine, case: Case, num: int, seed: int) -> float:
    rng = np.random.default_rng(seed)
    prompts = rng.integers(300, size=(num, case.num_prompt_tokens)).tolist()
    params = [SamplingParams(case.num_reply_tokens, 1.0, 1.0, seed * num + index, ()) for index in range(num)]
    started = time.perf_counter()
    replies = await asyncio.gather(*map(reply, engine.open_lanes(num), prompts, params))
    return sum(len(one.tokens) for one in replies) / (time.perf_counter() - started)


def experiment(path: Path, precision: str, num_in_flight: int) -> ExperimentConfig:
    tree: dict[str, Any] = {
        "run_dir": tempfile.gettempdir(),
        "seed": 0,
        "policy": {"path": str(path), "max_tokens": 512},
        "precision": precision,
        "environments": {"math/Arithmetic-v0": {}},
        "rollout": {"max_in_flight": num_in_flight},
        "train": {"num_steps": 1},
    }
    return ExperimentConfig.model_validate(tree)


if __name__ == "__main__":
    typer.run(main)
