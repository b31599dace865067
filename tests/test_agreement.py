"""Learner and engine compute the same logprobs for the tiny hybrid, before and after an update of the learner."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from rl.chat.formats.nemotron import NemotronFormat
from rl.config.policy import TinyHybrid
from rl.data_types import Sample, Turn
from rl.learner.batching import make_batches, to_device
from rl.learner.forward import policy_logprobs
from rl.learner.learner import Learner
from rl.learner.samples import rollout_samples
from rl.policies import build_policy
from rl.tokens import Tokens
from rl.weights.names import checkpoint_tensors
from rl.weights.shared_memory import write_weights
from tests.makers import make_config, make_rollout
from tests.scripted import SampledTurn
from tests.test_engine import sample_many

if TYPE_CHECKING:
    from rl.engine.vllm_core import VllmEngine

pytestmark = pytest.mark.slow
MAX_TOKENS = 256
NUM_ROLLOUTS = 40


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Learner, "VllmEngine", Path]]:
    from rl.engine.vllm_core import VllmEngine

    folder = tmp_path_factory.mktemp("policy")
    build_policy(TinyHybrid(), ["<|im_start|>user\n1+1=?<|im_end|>\n"] * 200, folder, 0, NemotronFormat())
    config = make_config(
        policy={"path": folder, "max_tokens": MAX_TOKENS},
        rollout={"max_in_flight": 12, "kv_cache_gib": 0.25},
        learner={"learning_rate": 1e-2, "warmup_steps": 0},
    )
    engine = VllmEngine(folder, config, lockstep_steps=2)
    yield Learner(folder, config), engine, folder
    engine.shutdown()


def as_sample(turn: SampledTurn, advantage: float) -> Sample:
    whole = Turn(Tokens.unsampled(turn.prompt_ids), turn.tokens, turn.finish, is_start=True)
    (sample,) = rollout_samples(make_rollout(turns=(whole,)), advantage)
    return sample


def differences(model: Any, samples: list[Sample], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The model's logprobs, computed in `dtype`, less those that the engine sampled with: one a sampled token."""
    deltas = []
    for batch in (to_device(batch, model.device) for batch in make_batches(samples, 4096, 0)):
        with torch.no_grad():
            logprobs_BT, _ = policy_logprobs(model, batch, dtype, 1.0, 1024)
        deltas.append((logprobs_BT - batch.columns["logprob"])[batch.loss_mask_BT])
    return torch.cat(deltas)


def test_learner_and_engine_agree_before_and_after_an_update(pair: tuple[Learner, "VllmEngine", Path]) -> None:
    learner, engine, folder = pair
    turns = asyncio.run(sample_many(engine, NUM_ROLLOUTS, first_seed=0))
    samples = [as_sample(turn, 1.0 if number % 2 else -1.0) for number, turn in enumerate(turns)]
    before = differences(learner.model, samples)
    assert len(before) >= 1000
    assert before.abs().mean() < 1e-4

    learner.update(samples)
    assert differences(learner.model, samples).abs().mean() > 1e-2  # the update did something
    source = write_weights(checkpoint_tensors(learner.model, "float32"), learner.policy_version, folder / "published")
    assert asyncio.run(engine.load_weights(source)) == source.hash
    turns = asyncio.run(sample_many(engine, NUM_ROLLOUTS, first_seed=1000))
    after = differences(learner.model, [as_sample(turn, 0.0) for turn in turns])
    assert len(after) >= 1000
    assert after.abs().mean() < 1e-4
