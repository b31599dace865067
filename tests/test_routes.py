"""Engines record the experts of prompts and replies: those that transformers' routers choose for the same tokens."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from rl.engine.protocol import SampledReply
from rl.engine.routes import Part, Routes
from rl.tokens import ROUTES
from rl.weights.names import checkpoint_tensors
from rl.weights.shared_memory import write_weights
from tests.families import write_policy
from tests.makers import make_config
from tests.test_engine import prompt, sampling

if TYPE_CHECKING:
    from rl.engine.vllm_core import VllmEngine


def part(name: str, first: int, *experts: int) -> Part:
    return Part(name, first, np.array([[[expert, expert + 1]] for expert in experts], np.uint8))


def test_steps_are_joined_and_tokens_that_are_computed_again_keep_their_routes() -> None:
    steps = [[part("a", 0, 1, 2, 3), part("b", 0, 7)], [part("a", 3, 4)], [part("a", 0, 9, 9, 9, 9, 5)]]
    routes = Routes(lambda: steps.pop(0))
    for _ in range(3):
        routes.collect()
    found = routes.pop("a")
    assert found is not None and found.shape == (5, 1, 2) and found[:, 0, 0].tolist() == [1, 2, 3, 4, 5]
    assert routes.pop("a") is None and routes.pop("c") is None
    other = routes.pop("b")
    assert other is not None and other.tolist() == [[[7, 8]]]


async def sample_all(engine: "VllmEngine") -> list[tuple[tuple[int, ...], SampledReply]]:
    async def one(lane: Any, seed: int) -> tuple[tuple[int, ...], SampledReply]:
        await lane.seated()
        reply = await lane.sample(prompt(seed), sampling(seed, max_reply_tokens=20))
        lane.close()
        return prompt(seed), reply

    lanes = enumerate(engine.open_lanes(9))
    return await asyncio.gather(*(one(lane, seed) for seed, lane in lanes))


def share_of_different(model: Any, turns: list[tuple[tuple[int, ...], SampledReply]]) -> float:
    """Share of the engine's choices that the routers of the model do not make."""
    chosen: list[torch.Tensor] = []
    for module in model.modules():
        if type(module).__name__.endswith("Router"):
            module.register_forward_hook(lambda _module, _inputs, output: chosen.append(output[2]))
    different = num = 0
    for prompt_ids, reply in turns:
        chosen.clear()
        with torch.no_grad():
            model(torch.tensor([[*prompt_ids, *reply.tokens.ids.tolist()]]), use_cache=False)
        own = torch.stack(chosen, dim=1).sort(dim=-1).values[:-1].numpy()
        told = np.concatenate([reply.prompt_columns[ROUTES], reply.tokens.columns[ROUTES]])
        assert told.dtype == np.uint8 and told.shape == (len(own) + 1, 2, 2) and not told[-1].any()
        different += int((np.sort(told[:-1], axis=-1) != own).sum())
        num += own.size
    return different / num


@pytest.fixture(params=["nemotron", "qwen3_moe"])
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple["VllmEngine", Any]]:
    from transformers import AutoModelForCausalLM

    from rl.engine.vllm_core import VllmEngine

    folder = write_policy(request.param, tmp_path / "policy")
    config = make_config(
        policy={"path": folder, "max_tokens": 256},
        rollout={"max_in_flight": 4, "kv_cache_gib": 0.1},  # fewer than requests, so that some come in between
        learner={"routing_replay": True},
    )
    engine = VllmEngine(folder, config, lockstep_steps=2)
    yield engine, AutoModelForCausalLM.from_pretrained(folder).eval()
    engine.shutdown()


@pytest.mark.slow
def test_recorded_experts_are_those_of_transformers(served: tuple["VllmEngine", Any], tmp_path: Path) -> None:
    engine, model = served
    assert share_of_different(model, asyncio.run(sample_all(engine))) < 0.001
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    source = write_weights(checkpoint_tensors(model, "float32"), 1, tmp_path / "published")
    asyncio.run(engine.load_weights(source))
    assert share_of_different(model, asyncio.run(sample_all(engine))) < 0.001
