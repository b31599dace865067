"""The vLLM engine on a tiny random NemotronH: numbers equal transformers', before and after new weights."""

import asyncio
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from rl.engine.protocol import EngineError, Lane, SamplingParams
from rl.weights.shared_memory import remove_weights, write_weights
from rl.weights.source import WeightSource
from tests.makers import make_config
from tests.scripted import SampledTurn, sample_turn

if TYPE_CHECKING:
    from rl.engine.vllm_core import VllmEngine

VOCAB_SIZE = 256
MAX_TOKENS = 256
STOP = 7


def random_policy(folder: Path, seed: int) -> Any:
    """A Mamba-MoE-attention-MoE policy, saved to the folder. Weights are large, so that replies are not noise."""
    from transformers import NemotronHConfig, NemotronHForCausalLM

    torch.manual_seed(seed)
    config = NemotronHConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=128,
        layers_block_type=["mamba", "moe", "attention", "moe"],
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        ssm_state_size=16,
        mamba_num_heads=8,
        mamba_head_dim=32,
        n_groups=2,
        chunk_size=32,
        n_routed_experts=8,
        num_experts_per_tok=2,
        moe_latent_size=64,
        moe_intermediate_size=128,
        moe_shared_expert_intermediate_size=256,
        max_position_embeddings=MAX_TOKENS,
        initializer_range=0.08,
        rescale_prenorm_residual=False,
    )
    model = NemotronHForCausalLM(config).eval()
    model.save_pretrained(folder)
    return model


def start_engine(folder: Path) -> "VllmEngine":
    from rl.engine.vllm_core import VllmEngine

    config = make_config(
        policy={"path": folder, "max_tokens": MAX_TOKENS}, rollout={"max_in_flight": 12, "kv_cache_gib": 0.25}
    )
    return VllmEngine(folder, config, lockstep_steps=2)


class Served:
    """An engine, and the transformers model that it should agree with."""

    def __init__(
        self,
        folder: Path,
        start: "Callable[[Path], VllmEngine]" = start_engine,
        make: Callable[[Path, int], Any] = random_policy,
    ) -> None:
        self.folder = folder
        self.model = make(folder, 0)
        self.engine = start(folder)
        self.version = 0

    def publish(self) -> WeightSource:
        from rl.weights.names import checkpoint_tensors

        self.version += 1
        return write_weights(checkpoint_tensors(self.model, "float32"), self.version, self.folder / "published")

    def perturb(self, scale: float) -> None:
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=scale)
            for name, buffer in self.model.named_buffers():
                if name.endswith("e_score_correction_bias"):
                    buffer.add_(torch.randn_like(buffer), alpha=0.2)

    def deltas(self, turns: Sequence[SampledTurn]) -> torch.Tensor:
        """Logprobs of transformers' forward pass over prompt and reply, less those of the engine: one a token."""
        deltas = []
        for turn in turns:
            token_ids = torch.tensor([[*turn.prompt_ids, *turn.reply_ids]])
            with torch.no_grad():
                logits = self.model(token_ids, use_cache=False).logits[0, len(turn.prompt_ids) - 1 : -1]
            reply_ids = torch.tensor(turn.reply_ids)[:, None]
            logprobs = logits.log_softmax(-1).gather(1, reply_ids)[:, 0]
            deltas.append(logprobs - torch.tensor(turn.reply_logprobs))
        return torch.cat(deltas)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(tmp_path_factory.mktemp("policy"))
    yield served
    served.engine.shutdown()


def sampling(seed: int, max_reply_tokens: int = 64, stop_ids: tuple[int, ...] = (STOP,)) -> SamplingParams:
    return SamplingParams(max_reply_tokens, temperature=1.0, top_p=1.0, seed=seed, stop_ids=stop_ids)


def prompt(seed: int) -> tuple[int, ...]:
    source = random.Random(seed)
    return tuple(source.randrange(VOCAB_SIZE) for _ in range(10 + seed % 17))


async def sample_many(engine: "VllmEngine", num: int, first_seed: int) -> list[SampledTurn]:
    async def one(lane: Lane, seed: int) -> SampledTurn:
        turn = await sample_turn(lane, prompt(seed), sampling(seed))
        lane.close()
        return turn

    return await asyncio.gather(*(one(lane, first_seed + i) for i, lane in enumerate(engine.open_lanes(num))))


async def converse(engine: "VllmEngine", latency: random.Random) -> list[list[SampledTurn]]:
    """Sixteen rollouts of up to three turns, with pauses of up to 30 ms between them; twelve fit the engine at once."""

    async def rollout(lane: Lane, number: int) -> list[SampledTurn]:
        turns: list[SampledTurn] = []
        prompt_ids = prompt(number)
        for turn in range(3 - number % 2):
            await asyncio.sleep(latency.random() * 0.03)
            turns.append(await sample_turn(lane, prompt_ids, sampling(number * 10 + turn, max_reply_tokens=24)))
            prompt_ids = (*prompt_ids, *turns[-1].reply_ids, *prompt(number + 100)[:5])
        await asyncio.sleep(latency.random() * 0.03)
        lane.close()
        return turns

    return await asyncio.gather(*(rollout(lane, number) for number, lane in enumerate(engine.open_lanes(16))))


def as_numbers(rollouts: list[list[SampledTurn]]) -> list[Any]:
    return [[[list(turn.reply_ids), list(turn.reply_logprobs)] for turn in turns] for turns in rollouts]


def run_once(folder: str) -> None:
    """What a fresh process runs: one conversation, printed as JSON, which keeps every bit of a float."""
    engine = start_engine(Path(folder))
    print(json.dumps(as_numbers(asyncio.run(converse(engine, random.Random(99))))), flush=True)
    engine.shutdown()


@pytest.mark.slow
async def test_logprobs_equal_those_of_transformers(served: Served) -> None:
    turns = await sample_many(served.engine, 40, first_seed=1000)
    deltas = served.deltas(turns)
    assert len(deltas) >= 1000
    assert deltas.abs().mean() < 1e-4


@pytest.mark.slow
async def test_the_stop_token_is_part_of_the_reply(served: Served) -> None:
    turns = await sample_many(served.engine, 40, first_seed=1000)
    stopped = [turn for turn in turns if turn.finish == "stop"]
    capped = [turn for turn in turns if turn.finish == "length"]
    assert len(stopped) + len(capped) == 40
    assert stopped
    assert capped
    assert all(turn.reply_ids[-1] == STOP and STOP not in turn.reply_ids[:-1] for turn in stopped)
    assert all(len(turn.reply_ids) == 64 and STOP not in turn.reply_ids for turn in capped)
    assert all(len(turn.reply_ids) == len(turn.reply_logprobs) == len(turn.policy_versions) for turn in turns)


@pytest.mark.slow
async def test_equal_seeds_give_equal_bits_whatever_the_latency(served: Served) -> None:
    first = await converse(served.engine, random.Random(1))
    second = await converse(served.engine, random.Random(2))
    assert as_numbers(first) == as_numbers(second)


@pytest.mark.slow
async def test_a_fresh_process_gives_the_same_bits(tmp_path: Path, served: Served) -> None:
    served.model.save_pretrained(tmp_path)
    first = await converse(served.engine, random.Random(3))
    program = f"from tests.test_engine import run_once; run_once({str(tmp_path)!r})"
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout.splitlines()[-1]) == as_numbers(first)


@pytest.mark.slow
async def test_new_weights_are_served_and_their_hash_is_acknowledged(served: Served) -> None:
    before = await sample_many(served.engine, 40, first_seed=2000)
    served.perturb(0.01)
    source = served.publish()
    assert await served.engine.load_weights(source) == source.hash
    remove_weights(source)
    turns = await sample_many(served.engine, 40, first_seed=2000)
    deltas = served.deltas(turns)
    assert len(deltas) >= 1000
    assert deltas.abs().mean() < 1e-4
    assert served.deltas(before).abs().mean() > 1e-2
    assert {version for turn in turns for version in turn.policy_versions} == {served.version}


@pytest.mark.slow
async def test_stale_and_damaged_versions_are_refused_and_the_old_weights_stay(served: Served) -> None:
    current = served.publish()
    await served.engine.load_weights(current)
    expected = as_numbers([await sample_many(served.engine, 8, first_seed=3000)])
    with pytest.raises(EngineError, match="not newer"):
        await served.engine.load_weights(current)
    served.perturb(0.01)
    source = served.publish()
    file = Path(str(source.place))
    file.write_bytes(file.read_bytes()[:-5000])
    with pytest.raises(EngineError, match="damaged or cut off"):
        await served.engine.load_weights(source)
    with pytest.raises(EngineError, match="cannot map"):
        await served.engine.load_weights(WeightSource(served.version, str(served.folder / "none"), source.hash))
    assert served.engine.version == current.version
    assert as_numbers([await sample_many(served.engine, 8, first_seed=3000)]) == expected
    served.version += 1
    await served.engine.load_weights(served.publish())


@pytest.mark.slow
async def test_an_update_in_flight_splits_the_reply_between_versions(served: Served) -> None:
    (lane,) = served.engine.open_lanes(1)
    old, num_before = served.version, served.engine.num_steps
    reply = asyncio.create_task(sample_turn(lane, prompt(5), sampling(5, max_reply_tokens=220, stop_ids=())))
    while served.engine.num_steps < num_before + 10:
        await asyncio.sleep(0.001)
    await served.engine.load_weights(served.publish())
    turn = await reply
    lane.close()
    assert len(turn.reply_ids) == 220
    assert set(turn.policy_versions) == {old, served.version}
    assert list(turn.policy_versions) == sorted(turn.policy_versions)
    assert served.deltas([turn]).abs().mean() < 1e-4  # the same weights under a new number


@pytest.mark.slow
async def test_a_cancelled_reply_gives_its_place_back(served: Served) -> None:
    (lane,) = served.engine.open_lanes(1)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(sample_turn(lane, prompt(6), sampling(6, max_reply_tokens=220, stop_ids=())), 0.05)
    turn = await sample_turn(lane, prompt(6), sampling(6, max_reply_tokens=5, stop_ids=()))
    lane.close()
    assert turn.finish == "length"
    assert served.deltas([turn]).abs().max() < 1e-3


@pytest.mark.slow
async def test_prompts_that_do_not_fit_are_refused_and_long_replies_capped(served: Served) -> None:
    (lane,) = served.engine.open_lanes(1)
    with pytest.raises(EngineError, match=r"256 tokens .* policy\.max_tokens \(256\)"):
        await sample_turn(lane, (1,) * MAX_TOKENS, sampling(0))
    with pytest.raises(EngineError, match="vocabulary of 256"):
        await sample_turn(lane, (1, VOCAB_SIZE), sampling(0))
    turn = await sample_turn(lane, (1,) * (MAX_TOKENS - 3), sampling(0, stop_ids=()))
    lane.close()
    assert (len(turn.reply_ids), turn.finish) == (3, "length")


@pytest.mark.slow
async def test_weights_that_leave_out_an_expert_end_the_engine(served: Served) -> None:
    """The last test of this engine."""
    from rl.weights.names import checkpoint_tensors

    tensors = [entry for entry in checkpoint_tensors(served.model, "float32") if ".experts.3.up_proj" not in entry[0]]
    source = write_weights(tensors, served.version + 1, served.folder / "published")
    with pytest.raises(EngineError, match="leaves 2 layers without all their weights"):
        await served.engine.load_weights(source)
    deadline = time.monotonic() + 10
    with pytest.raises(EngineError, match="without all their weights"):
        while time.monotonic() < deadline:
            served.engine.check_alive()
            await asyncio.sleep(0.01)
