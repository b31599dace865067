"""How much of the mismatch of learner and engine comes from experts that they choose differently?

    python -m benchmarks.routing_replay --out benchmarks/results/routing_replay.json     (about three minutes)

An engine samples replies of random hybrids in bfloat16 and records the experts of each token. Two learners then make an
update with the same rows: one whose routers choose for themselves, one that replays the record. The figures are
`update/mismatch` less 1, its k3, and the share of the recorded choices that the learner's routers would not have made.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import asyncio
import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.matched_forward import reply
from benchmarks.random_policies import untrained
from benchmarks.report import write_report
from rl.config.experiment import ExperimentConfig
from rl.config.policy import TinyHybrid
from rl.data_types import Sample
from rl.engine.protocol import Engine, Lane, SamplingParams
from rl.tokens import Tokens

POLICIES = {
    "tiny": TinyHybrid(),
    "deep": TinyHybrid(pattern="MEM*ME" * 5, num_experts=32, num_experts_per_token=6),
}
"""The quickstart's, and one of 30 layers, 10 of which are mixtures of experts."""
PROMPT_TOKENS = 32
ENV_ID = "math/Arithmetic-v0"


@dataclass(frozen=True, slots=True)
class Size:
    """How much is compared."""

    num_replies: int = 64
    num_reply_tokens: int = 96
    policies: tuple[str, ...] = field(default=tuple(POLICIES))


FULL = Size()
SHORT = Size(num_replies=2, num_reply_tokens=8, policies=("tiny",))


def main(
    out: Annotated[Path, typer.Option(help="JSON file to write.")],
    short: Annotated[bool, typer.Option(help="Two replies of one policy; only to see that it runs.")] = False,
) -> None:
    torch.set_num_threads(1)
    size = SHORT if short else FULL
    with tempfile.TemporaryDirectory() as folder:
        summary = {name: compare(POLICIES[name], Path(folder) / name, size) for name in size.policies}
    write_report(out, summary)


def compare(built: TinyHybrid, folder: Path, size: Size) -> dict[str, float]:
    """Both learners' figures."""
    from rl.engine.vllm_core import VllmEngine
    from rl.learner.learner import Learner

    untrained(folder, built=built)
    engine = VllmEngine(folder, experiment(folder, size, replays=True), lockstep_steps=0)
    try:
        samples = asyncio.run(sample(engine, built.vocab_size, size))
    finally:
        engine.shutdown()
    own, replayed = (
        Learner(folder, experiment(folder, size, replays=replays)).update(samples) for replays in (False, True)
    )
    assert own.mismatch is not None and replayed.mismatch is not None
    return {
        "tokens": own.num_loss_tokens,
        "own_excess": own.mismatch - 1,
        "own_k3": own.mismatch_kl,
        "replayed_excess": replayed.mismatch - 1,
        "replayed_k3": replayed.mismatch_kl,
        "route_mismatch": replayed.measures["route_mismatch"],
    }


def experiment(policy: Path, size: Size, *, replays: bool) -> ExperimentConfig:
    tree = {
        "run_dir": tempfile.gettempdir(),
        "seed": 0,
        "weights": "shared_memory",
        "policy": {"path": str(policy), "max_tokens": 256},
        "precision": "bf16",
        "environments": {ENV_ID: {}},
        "learner": {"routing_replay": replays},
        "rollout": {"max_in_flight": size.num_replies},
        "train": {"num_steps": 1},
    }
    return ExperimentConfig.model_validate(tree)


async def sample(engine: Engine, vocab_size: int, size: Size) -> list[Sample]:
    """Replies to random prompts as whole rows, of advantage 1 and -1 in turn."""
    lanes = engine.open_lanes(size.num_replies)
    rows = await asyncio.gather(*(row(lane, seed, vocab_size, size) for seed, lane in enumerate(lanes)))
    return [Sample(ENV_ID, tokens, (-1.0) ** number) for number, tokens in enumerate(rows)]


async def row(lane: Lane, seed: int, vocab_size: int, size: Size) -> Tokens:
    prompt: Sequence[int] = [random.Random(seed).randrange(vocab_size) for _ in range(PROMPT_TOKENS)]
    sampled = await reply(lane, prompt, SamplingParams(size.num_reply_tokens, 1.0, 1.0, seed, ()))
    return Tokens.joined([Tokens.unsampled(prompt, sampled.prompt_columns), sampled.tokens])


if __name__ == "__main__":
    typer.run(main)
