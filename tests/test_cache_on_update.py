"""New weights arrive while replies are sampled: their cached states are kept, or computed again."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from rl.engine.protocol import Lane
from rl.weights.source import WeightSource
from tests.makers import make_config
from tests.scripted import SampledTurn, sample_turn
from tests.test_engine import MAX_TOKENS, Served, prompt, sampling

if TYPE_CHECKING:
    from rl.engine.vllm_core import VllmEngine

pytestmark = pytest.mark.slow
NUM_REPLIES, NUM_TOKENS = 4, 120


def serve(folder: Path, cache_on_update: str) -> Served:
    def start(folder: Path) -> "VllmEngine":
        from rl.engine.vllm_core import VllmEngine

        rollout = {"max_in_flight": 12, "kv_cache_gib": 0.25, "cache_on_update": cache_on_update}
        return VllmEngine(folder, make_config(policy={"path": folder, "max_tokens": MAX_TOKENS}, rollout=rollout), 0)

    return Served(folder, start)


async def sample_over(engine: "VllmEngine", source: WeightSource | None) -> list[SampledTurn]:
    """Replies during which this version is loaded, some steps after they have begun."""

    async def one(lane: Lane, seed: int) -> SampledTurn:
        turn = await sample_turn(lane, prompt(seed), sampling(seed, NUM_TOKENS, stop_ids=()))
        lane.close()
        return turn

    num_before = engine.num_steps
    replies = [asyncio.create_task(one(lane, seed)) for seed, lane in enumerate(engine.open_lanes(NUM_REPLIES))]
    while source is not None and engine.num_steps < num_before + 20:
        await asyncio.sleep(0.001)
    if source is not None:
        assert await engine.load_weights(source) == source.hash
    return await asyncio.gather(*replies)


def split(turns: list[SampledTurn], deltas: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The differences of tokens before the update and after it. Versions only rise, and both are there."""
    versions = [turn.policy_versions for turn in turns]
    assert all(len(each) == NUM_TOKENS and list(each) == sorted(each) and len(set(each)) == 2 for each in versions)
    is_new = torch.tensor([version == each[-1] for each in versions for version in each])
    return deltas[~is_new].abs(), deltas[is_new].abs()


@pytest.mark.parametrize("cache_on_update", ["keep", "recompute"])
async def test_replies_in_flight_go_on_over_an_update(tmp_path: Path, cache_on_update: str) -> None:
    served = serve(tmp_path, cache_on_update)
    try:
        undisturbed = await sample_over(served.engine, None)
        same = await sample_over(served.engine, served.publish())  # the same weights under a new number
        assert [turn.reply_ids for turn in same] == [turn.reply_ids for turn in undisturbed]
        differences = torch.tensor([turn.reply_logprobs for turn in same])
        differences -= torch.tensor([turn.reply_logprobs for turn in undisturbed])
        assert differences.abs().max() <= (0.0 if cache_on_update == "keep" else 1e-4)
        split(same, served.deltas(same))

        served.perturb(0.01)
        source = served.publish()
        turns = await sample_over(served.engine, source)
        _, after = split(turns, served.deltas(turns))
        assert {turn.policy_versions[0] for turn in turns} == {source.version - 1}
        assert {turn.policy_versions[-1] for turn in turns} == {source.version}
        # The reference computes all states by the new weights.
        assert (after.mean() < 1e-4) == (cache_on_update == "recompute")
    finally:
        await asyncio.to_thread(served.engine.shutdown)
