"""The engine keeps thinking budgets to the token, and changes nothing else."""

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rl.chat.budget import ThinkingLimit, violation
from rl.engine.protocol import Lane, SamplingParams
from tests.makers import make_config
from tests.scripted import SampledTurn, sample_turn
from tests.test_engine import MAX_TOKENS, Served, prompt

if TYPE_CHECKING:
    from rl.engine.vllm_core import VllmEngine

pytestmark = pytest.mark.slow
END, STOP = 2, 7
NUM_RANDOM = 5000


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    from rl.engine.vllm_core import VllmEngine

    def start(folder: Path) -> "VllmEngine":
        config = make_config(
            policy={"path": folder, "max_tokens": MAX_TOKENS}, rollout={"max_in_flight": 64, "kv_cache_gib": 0.25}
        )
        return VllmEngine(folder, config, lockstep_steps=0)

    served = Served(tmp_path_factory.mktemp("policy"), start)
    yield served
    served.engine.shutdown()


def limit(source: random.Random) -> ThinkingLimit:
    line_ends = frozenset(source.sample(range(20, 256), 12))
    return ThinkingLimit(source.randint(1, 24), source.randint(0, 8), (11, 12, END), END, line_ends)


async def sample_all(
    engine: "VllmEngine", limits: list[ThinkingLimit | None], max_reply_tokens: int
) -> list[SampledTurn]:
    async def one(lane: Lane, seed: int, thinking: ThinkingLimit | None) -> SampledTurn:
        params = SamplingParams(max_reply_tokens, 1.0, 1.0, seed, (STOP,), thinking)
        turn = await sample_turn(lane, prompt(seed), params)
        lane.close()
        return turn

    lanes = engine.open_lanes(len(limits))
    return await asyncio.gather(*(one(lane, seed, limits[seed]) for seed, lane in enumerate(lanes)))


def test_thousands_of_random_replies_keep_budget_and_grace_to_the_token(served: Served) -> None:
    source = random.Random(0)
    limits = [limit(source) for _ in range(NUM_RANDOM)]
    turns = asyncio.run(sample_all(served.engine, [*limits], max_reply_tokens=40))
    num_hits = 0
    for turn, thinking in zip(turns, limits, strict=True):
        assert violation(turn.tokens, thinking) == ""
        reasoning = turn.reply_ids.index(END) if END in turn.reply_ids else len(turn.reply_ids)
        sampled = sum(not forced for forced in turn.forced_mask[:reasoning])
        assert sampled <= thinking.num_tokens + thinking.grace_tokens
        num_hits += any(turn.forced_mask)
        forced = [value for value, is_forced in zip(turn.reply_logprobs, turn.forced_mask, strict=True) if is_forced]
        assert forced == [0.0] * len(forced)
    assert num_hits > NUM_RANDOM // 2


def test_unforced_tokens_have_the_logprobs_they_would_have_without_a_budget(served: Served) -> None:
    source = random.Random(1)
    turns = asyncio.run(sample_all(served.engine, [limit(source) for _ in range(64)], max_reply_tokens=80))
    free = asyncio.run(sample_all(served.engine, [None] * 64, max_reply_tokens=80))
    num_same = 0
    for turn, other in zip(turns, free, strict=True):
        start = turn.forced_mask.index(True) if any(turn.forced_mask) else len(turn.reply_ids)
        num_same += turn.reply_ids[:start] == other.reply_ids[:start]
        unforced = [not forced for forced in turn.forced_mask]
        deltas = served.deltas([turn])[unforced]
        assert deltas.abs().mean() < 1e-4
    assert num_same >= 63  # a tie of floats may fall otherwise in another batch
