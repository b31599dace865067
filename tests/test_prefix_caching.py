"""What an engine of an attention policy finds in its cache: prompts of the same group and version, and nothing else."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rl.engine.protocol import Lane
from tests.scripted import SampledTurn, sample_turn
from tests.test_engine import MAX_TOKENS, VOCAB_SIZE, Served, prompt, sampling, start_engine

pytestmark = pytest.mark.slow
PROMPT = sum((prompt(seed) for seed in range(8)), ())[:75]
"""Two blocks of 32 tokens, and 11 more."""


def dense_policy(folder: Path, seed: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=MAX_TOKENS,
        initializer_range=0.08,
    )
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(tmp_path_factory.mktemp("policy"), start_engine, dense_policy)
    yield served
    served.engine.shutdown()


@pytest.fixture
def found(served: Served, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Prompt tokens that the engine found in its cache, one number a request, in the order of their first tokens."""
    numbers: dict[str, int] = {}
    core: Any = served.engine._core
    llm = core._llm
    step = llm.step

    def recorded() -> Any:
        outputs = step()
        for output in outputs:
            if output.num_cached_tokens is not None and output.request_id not in numbers:
                numbers[output.request_id] = output.num_cached_tokens
                in_order.append(output.num_cached_tokens)
        return outputs

    in_order: list[int] = []
    monkeypatch.setattr(llm, "step", recorded)
    return in_order


async def group(served: Served, name: str, num: int, prompt_ids: tuple[int, ...] = PROMPT) -> list[SampledTurn]:
    async def one(lane: Lane, member: int) -> SampledTurn:
        params = replace(sampling(member, max_reply_tokens=40, stop_ids=()), name=f"{name}/{member}/0/0")
        turn = await sample_turn(lane, prompt_ids, params)
        lane.close()
        return turn

    return await asyncio.gather(*(one(lane, member) for member, lane in enumerate(served.engine.open_lanes(num))))


async def test_a_group_computes_its_prompt_once_and_with_the_same_bits(served: Served, found: list[int]) -> None:
    turns = await group(served, "0-0", 5)
    assert found == [0, 64, 64, 64, 64]
    assert served.deltas(turns).abs().max() < 1e-4
    apart = [await group(served, f"0-{member + 1}", member + 1) for member in range(5)]
    assert found[5:] == [number for size in range(5) for number in (0, *[64] * size)]  # another group finds nothing
    for member, turn in enumerate(turns):
        assert [other[member] for other in apart[member:]] == [turn] * (5 - member)


async def test_a_later_turn_finds_the_one_before(served: Served, found: list[int]) -> None:
    (turn,) = await group(served, "1-0", 1)
    longer = (*turn.prompt_ids, *turn.reply_ids, *prompt(3))
    (second,) = await group(served, "1-0", 1, longer)
    assert found == [0, 96]
    assert served.deltas([second]).abs().max() < 1e-4


async def test_states_of_older_weights_are_not_found(served: Served, found: list[int]) -> None:
    await group(served, "2-0", 2)
    served.perturb(0.01)
    await served.engine.load_weights(served.publish())
    turns = await group(served, "2-0", 2)
    assert found == [0, 64, 0, 64]
    assert served.deltas(turns).abs().max() < 1e-4


async def test_a_learner_that_counts_versions_again_has_other_states(served: Served, found: list[int]) -> None:
    served.perturb(0.01)
    first = served.publish()
    await served.engine.load_weights(first)
    await group(served, "3-0", 2)
    served.perturb(0.01)
    served.version -= 1
    await served.engine.load_weights(replace(served.publish(), epoch=first.epoch + 1))
    turns = await group(served, "3-0", 2)
    assert found == [0, 64, 0, 64]
    assert served.deltas(turns).abs().max() < 1e-4
