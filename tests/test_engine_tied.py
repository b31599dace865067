"""A policy whose head shares the embedding's weights: both must follow an update."""

import asyncio
from pathlib import Path

import pytest
import torch

from rl.engine.protocol import SamplingParams
from rl.weights.shared_memory import write_weights
from tests.makers import make_config
from tests.scripted import SampledTurn, sample_turn


@pytest.mark.slow
async def test_a_tied_head_follows_the_embedding(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    from rl.engine.vllm_core import VllmEngine
    from rl.weights.names import checkpoint_tensors

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300,  # not a multiple of 64: vLLM pads the embedding
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        initializer_range=0.1,
    )
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(tmp_path)
    served = make_config(policy={"path": tmp_path, "max_tokens": 128}, rollout={"kv_cache_gib": 0.25})
    engine = VllmEngine(tmp_path, served, lockstep_steps=0)

    async def delta() -> float:
        (lane,) = engine.open_lanes(1)
        turn: SampledTurn = await sample_turn(lane, (1, 2, 3), SamplingParams(100, 1.0, 1.0, 5, ()))
        with torch.no_grad():
            logits = model(torch.tensor([[*turn.prompt_ids, *turn.reply_ids]])).logits[0, 2:-1]
        logprobs = logits.log_softmax(-1).gather(1, torch.tensor(turn.reply_ids)[:, None])[:, 0]
        return float((logprobs - torch.tensor(turn.reply_logprobs)).abs().mean())

    try:
        assert await delta() < 1e-5
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
        tensors = dict(checkpoint_tensors(model, "float32"))
        assert "lm_head.weight" not in tensors
        await engine.load_weights(write_weights(tensors.items(), 1, tmp_path / "published"))
        assert await delta() < 1e-5
    finally:
        await asyncio.to_thread(engine.shutdown)
