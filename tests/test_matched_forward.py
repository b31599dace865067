"""Learner and engine compute the same function of NVFP4 weights: their logprobs differ no more than in bfloat16."""

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch

from rl.algorithms.kl import k3
from rl.engine.protocol import EngineError
from rl.precision.folded import FoldedWeights
from rl.weights.names import checkpoint_tensors
from rl.weights.shared_memory import write_weights
from tests.makers import make_config
from tests.scripted import SampledTurn
from tests.test_agreement import as_sample, differences
from tests.test_engine import MAX_TOKENS, random_policy, sample_many

if TYPE_CHECKING:
    from rl.engine.vllm_core import VllmEngine

pytestmark = pytest.mark.slow
NUM_ROLLOUTS = 300


class Mismatch(NamedTuple):
    excess: float
    """mean exp|delta logp| - 1"""
    k3: float


def mismatch(model: Any, turns: Sequence[SampledTurn]) -> Mismatch:
    """Between the model's logprobs in bfloat16 and those that the engine sampled with."""
    delta = differences(model, [as_sample(turn, 0.0) for turn in turns], torch.bfloat16).double()
    return Mismatch((delta.abs().exp().mean() - 1).item(), k3(delta).mean().item())


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, "VllmEngine", Path]]:
    from rl.engine.vllm_core import VllmEngine

    folder = tmp_path_factory.mktemp("policy")
    model = random_policy(folder, seed=0)
    config = make_config(
        policy={"path": folder, "max_tokens": MAX_TOKENS},
        precision="nvfp4",
        rollout={"max_in_flight": 12, "kv_cache_gib": 0.25},
    )
    engine = VllmEngine(folder, config, lockstep_steps=2)
    yield model, engine, folder
    engine.shutdown()


def test_learner_and_engine_agree_on_nvfp4_as_on_bfloat16(served: tuple[Any, "VllmEngine", Path]) -> None:
    model, engine, folder = served
    folded = FoldedWeights(model, make_config(precision="nvfp4").precision)

    with pytest.raises(EngineError, match="nothing was published yet"):  # the checkpoint holds the master weights
        asyncio.run(sample_many(engine, 1, first_seed=0))

    def sample_with(version: int, quantised: bool) -> list[SampledTurn]:
        tensors = checkpoint_tensors(model, "bfloat16", folded.quantised if quantised else None)
        source = write_weights(tensors, version, folder / "published")
        assert asyncio.run(engine.load_weights(source)) == source.hash
        return asyncio.run(sample_many(engine, NUM_ROLLOUTS, first_seed=0))

    bfloat16 = mismatch(model, sample_with(0, quantised=False))
    turns = sample_with(1, quantised=True)
    with folded.in_place():
        matched = mismatch(model, turns)
    unmatched = mismatch(model, turns)
    print(f"{bfloat16=} {matched=} {unmatched=}")
    assert matched.excess <= 1.2 * bfloat16.excess
    assert matched.k3 <= 1.2 * bfloat16.k3
    assert unmatched.excess >= 10 * matched.excess
    assert unmatched.k3 >= 10 * matched.k3
