"""Prefixes computed once: logprobs and gradients of policies of several kinds are those of padded rows."""

import copy
import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    FalconH1Config,
    Gemma2Config,
    JambaConfig,
    Lfm2Config,
    LlamaConfig,
    MiniMaxConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3MoeConfig,
    Qwen3NextConfig,
)

from rl.data_types import Sample
from rl.learner import tree_attention
from rl.learner.batching import make_batches, to_device
from rl.learner.forward import policy_logprobs
from rl.learner.learner import Learner
from rl.learner.trees import let_take_trees
from tests.test_learner import VOCAB, config_with, hybrid_path, load, make_sample, on_policy, weights

assert hybrid_path
SMALL: dict[str, Any] = {
    **{"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.3, "pad_token_id": 0},
}
NEW: dict[str, Any] = {**SMALL, "initializer_range": 0.02}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
TAKE_TREES: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SMALL),
    "a sliding window": MistralConfig(**SMALL, sliding_window=6),
    "qwen3": Qwen3Config(**SMALL, tie_word_embeddings=True),
    "experts": Qwen3MoeConfig(**SMALL, **EXPERTS),
}


def rows() -> list[Sample]:
    """Groups of one prompt, a group that shares more than its prompt, equal rows, and a row that shares nothing."""
    generator = torch.Generator().manual_seed(3)

    def some(num: int) -> list[int]:
        return torch.randint(1, VOCAB, (num,), generator=generator).tolist()

    opening = some(3)
    prompts = [[*opening, *some(num)] for num in (2, 9, 20)]
    samples = [
        make_sample([*prompt, *some(num)], len(prompt), advantage=num - 8.0)
        for prompt in prompts
        for num in (2, 5, 9, 16)
    ]
    reply = some(6)
    longer = [make_sample([*prompts[1], *reply, *some(num)], len(prompts[1]), advantage=1.0) for num in (0, 2, 7)]
    return [*samples, *longer, samples[1], make_sample(some(12), 1, advantage=-0.5)]


Scored = dict[tuple[int, ...], torch.Tensor]


def scored(model: PreTrainedModel, dtype: torch.dtype, *, shares: bool) -> tuple[Scored, dict[str, torch.Tensor]]:
    """Logprobs by row, and the gradient of a sum over all tokens in which each has another weight."""
    model.zero_grad()
    found: Scored = {}
    for batch in make_batches(rows(), 60 if shares else 150, 0, shares_prefixes=shares):
        batch = to_device(batch, model.device)
        logprobs_BT, _ = policy_logprobs(model, batch, dtype, 1.3, 7)
        (logprobs_BT * (1 + torch.arange(logprobs_BT.shape[1], device=model.device)) / 10).sum().backward()
        for ids_T, mask_T, logprobs_T in zip(batch.token_ids_BT, batch.attention_mask_BT, logprobs_BT, strict=True):
            found[tuple(ids_T[mask_T].tolist())] = logprobs_T[mask_T].detach()
    return found, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def takes_trees(model: PreTrainedModel, dtype: torch.dtype = torch.float32) -> bool:
    score = partial(policy_logprobs, model, dtype=dtype, temperature=1.0, chunk_tokens=100)
    return let_take_trees(model, score, dtype, model.device)


def made(config: PretrainedConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(copy.deepcopy(config)).eval()


def assert_close(found: dict[Any, torch.Tensor], wanted: dict[Any, torch.Tensor], tolerance: float) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        scale = max(1.0, value.abs().max().item())
        torch.testing.assert_close(found[name] / scale, value / scale, rtol=0, atol=tolerance, msg=str(name))


def plain_flash(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    query_ends: Tensor,
    key_ends: Tensor,
    most_queries: int,
    most_keys: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> Tensor:
    """What FlashAttention's documentation says, a sequence at a time: the last query sees the last key."""
    window, ahead = window_size
    assert enable_gqa and ahead == 0
    outputs, num_queries, num_keys = [], query_ends.diff().tolist(), key_ends.diff().tolist()
    assert (max(num_queries), max(num_keys)) == (most_queries, most_keys)
    split = zip(queries.split(num_queries), keys.split(num_keys), values.split(num_keys), strict=True)
    for q, k, v in split:
        behind = torch.arange(len(k))[None] - torch.arange(len(k) - len(q), len(k))[:, None]
        mask = (behind <= 0) & ((behind >= -window) | (window < 0))
        k, v = (one.repeat_interleave(q.shape[1] // one.shape[1], dim=1) for one in (k, v))
        scores_HQK = torch.einsum("qhd,khd->hqk", q, k) * scale
        weights_HQK = scores_HQK.masked_fill(~mask, -torch.inf).softmax(dim=-1)
        outputs.append(torch.einsum("hqk,khd->qhd", weights_HQK, v))
    return torch.cat(outputs)


def use_products(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tree_attention.MOST_KEYS > 100


def use_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_attention, "MOST_KEYS", 0)


def use_flash(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on GPUs, whose kernel is compared in tests/test_gpu_learner.py."""
    monkeypatch.setattr(tree_attention, "_suits_flash", lambda *_: True)
    monkeypatch.setattr(tree_attention, "varlen_attn", plain_flash)


@pytest.mark.parametrize("use", [use_products, use_fused, use_flash])
@pytest.mark.parametrize("config", TAKE_TREES.values(), ids=TAKE_TREES)
def test_logprobs_and_gradients_are_those_of_padded_rows(config, use, monkeypatch):
    model = made(config)
    logprobs, gradient = scored(model, torch.float32, shares=False)
    assert takes_trees(model)
    use(monkeypatch)
    shared_logprobs, shared_gradient = scored(model, torch.float32, shares=True)
    assert_close(shared_logprobs, logprobs, 2e-5)
    assert_close(shared_gradient, gradient, 2e-5)


def test_the_hybrids_too(hybrid_path):
    model = load(hybrid_path)
    for name, parameter in model.named_parameters():
        if name.endswith(("dt_bias", "conv1d.bias", ".D")):  # which are all alike in a new policy
            torch.nn.init.normal_(parameter.data, std=0.5)
    logprobs, gradient = scored(model, torch.float32, shares=False)
    assert takes_trees(model)
    shared_logprobs, shared_gradient = scored(model, torch.float32, shares=True)
    assert_close(shared_logprobs, logprobs, 2e-5)
    assert_close(shared_gradient, gradient, 2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_new_policy_takes_trees_too(dtype):
    assert takes_trees(made(LlamaConfig(**{**SMALL, "initializer_range": 0.02})), dtype)


def test_in_bfloat16_they_differ_by_rounding_only():
    assert_rounding_only(made(LlamaConfig(**{**SMALL, "initializer_range": 0.1})))


def assert_rounding_only(model: PreTrainedModel) -> None:
    """Logprobs of shared prefixes in bfloat16 are as near to the exact ones as those of padded rows in bfloat16."""
    (exact, _), (plain, _) = (scored(model, dtype, shares=False) for dtype in (torch.float32, torch.bfloat16))
    assert takes_trees(model, torch.bfloat16)
    shared, _ = scored(model, torch.bfloat16, shares=True)

    def error(found: Scored) -> float:
        return torch.cat([(found[row] - exact[row]).abs() for row in exact]).mean().item()

    assert error(shared) < 1.2 * error(plain)


def layers_of(model: Any) -> Iterable[torch.nn.Module]:
    return model.base_model.layers


def refuses(module: torch.nn.Module) -> Callable[..., Any]:
    forward = module.forward

    def without_tree(*inputs: Any, prefix_tree: Any = None, **more: Any) -> Any:
        return forward(*inputs, **more)

    return without_tree


def test_a_policy_that_cannot_is_left_as_it_was(caplog):
    """Attention with a cap on its logits; a model that does not hand the tree on to its layers."""
    capped = made(Gemma2Config(**SMALL))
    deaf = made(LlamaConfig(**SMALL))
    for layer in layers_of(deaf):
        layer.forward = refuses(layer)
    for model, reason in ((capped, "softcap"), (deaf, "differ")):
        before, _ = scored(model, torch.float32, shares=False)
        with caplog.at_level("INFO"):
            assert not takes_trees(model)
        assert reason in caplog.text
        assert_close(scored(model, torch.float32, shares=False)[0], before, 0.0)


LINEAR: dict[str, Any] = {"layer_types": ["linear_attention", "full_attention"]}
STATES: dict[str, tuple[PretrainedConfig, str]] = {
    "falcon_h1": (
        FalconH1Config(**NEW, mamba_d_ssm=64, mamba_n_heads=4, mamba_d_head=16, mamba_d_state=16, mamba_chunk_size=8),
        r"mamba \(FalconH1Mixer\)",
    ),
    "qwen3_next": (
        Qwen3NextConfig(
            **{**NEW, **EXPERTS, **LINEAR},
            linear_num_value_heads=2,
            linear_num_key_heads=2,
            linear_key_head_dim=8,
            linear_value_head_dim=8,
            shared_expert_intermediate_size=16,
        ),
        r"linear_attn \(Qwen3NextGatedDeltaNet\)",
    ),
    "jamba": (JambaConfig(**NEW, num_experts=1, attn_layer_period=2, attn_layer_offset=1), r"mamba \(JambaMamba"),
    "lfm2": (Lfm2Config(**NEW, layer_types=["conv", "full_attention"]), r"conv \(Conv1d\)"),
    "minimax": (MiniMaxConfig(**NEW, **LINEAR, num_local_experts=2), "MiniMaxForCausalLM"),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", STATES)
def test_layers_that_carry_a_state_are_refused_though_their_logprobs_hardly_differ(kind, dtype, caplog):
    config, reason = STATES[kind]
    model = made(config)
    usual = model.config._attn_implementation
    with caplog.at_level("INFO"):
        assert not takes_trees(model, dtype)
    assert re.search(f"{reason}.* carries a state from token to token", caplog.text)
    assert model.config._attn_implementation == usual


@pytest.mark.parametrize("initializer_range", [0.3, 0.001])
def test_a_policy_that_mixes_rows_is_found_out(initializer_range):
    """Also a new one, whose logprobs hardly differ whatever it sees."""
    model = made(LlamaConfig(**{**SMALL, "initializer_range": initializer_range}))
    for layer in layers_of(model):  # as a convolution that runs over the row of nodes would
        layer.register_forward_hook(lambda _module, _inputs, output: output + 0.1 * output.roll(1, dims=1))
    assert not takes_trees(model)


@pytest.fixture(scope="module")
def dense_path(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("dense")
    made(Qwen3Config(**SMALL)).save_pretrained(path)
    return path


def updated(path: Path, samples: Sequence[Sample], **keys: Any) -> tuple[Learner, list[Any]]:
    learner = Learner(path, config_with(expert_bias_rate=0.1, **keys))
    return learner, [learner.update(samples) for _ in range(2)]


@pytest.mark.parametrize("kind", ["hybrid", "dense"])
@pytest.mark.parametrize("keys", [{}, {"activation_checkpointing": True}, {"tokens_per_micro_batch": 256}], ids=str)
def test_updates_are_those_of_padded_rows_with_fewer_tokens(kind, keys, request, tmp_path):
    path = request.getfixturevalue("hybrid_path" if kind == "hybrid" else "dense_path")
    advantages = [sample.advantage for sample in rows()]
    own = on_policy(load(path), rows())
    samples = [Sample(one.env_id, one.tokens, value) for one, value in zip(own, advantages, strict=True)]
    if "tokens_per_micro_batch" in keys:
        keys = {**keys, "policy": {"max_tokens": 64}, "rollout": {"max_reply_tokens": 32}}
    (plain, updates), (shared, shared_updates) = (
        updated(path, samples, share_prefixes=shares, **keys) for shares in (False, True)
    )
    for update, other in zip(updates, shared_updates, strict=True):
        assert other.num_tokens < 0.7 * update.num_tokens == 0.7 * sum(len(sample.tokens) for sample in samples)
        assert other.loss == pytest.approx(update.loss, abs=1e-4)
        assert other.grad_norm == pytest.approx(update.grad_norm, rel=1e-3)
        mismatches = [one.mismatch or one.mismatch_stale for one in (update, other)]
        assert mismatches[1] == pytest.approx(mismatches[0], rel=1e-4)
        assert other.entropy == pytest.approx(update.entropy, rel=1e-4)
    biases = {name: value for name, value in weights(plain).items() if name.endswith("correction_bias")}
    assert all(torch.equal(weights(shared)[name], value) for name, value in biases.items())
    assert bool(biases) == (kind == "hybrid")
    shared.save_state(tmp_path)
    assert "prefix_tree" not in (tmp_path / "model" / "config.json").read_text()
