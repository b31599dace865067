"""Adapters of routed experts: trained, merged, saved, and published alone, though transformers stacks experts."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, GptOssConfig, GraniteMoeConfig, PreTrainedConfig, PreTrainedModel

from rl.chat.formats.nemotron import NemotronFormat
from rl.config.learner import AdapterConfig
from rl.config.policy import TinyHybrid
from rl.learner.adapter import AdapterError, add_adapter, without_adapter
from rl.learner.learner import Learner
from rl.policies import build_policy
from rl.weights.merged import ADAPTER, adapted_weights, is_adapted_experts, merged_experts, merged_state, with_adapter
from rl.weights.names import adapter_tensors, checkpoint_tensors
from rl.weights.source import WeightsError
from tests.families import write_policy
from tests.test_adapter_base import logprobs
from tests.test_adapter_training import config_of, logits, samples_of

pytestmark = pytest.mark.slow
ADAPTED = {"rank": 4, "alpha": 8, "experts": True}


STACKED: dict[str, Any] = {
    "num_hidden_layers": 1,
    "num_local_experts": 2,
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "num_experts_per_tok": 1,
}


def random_adapter(config: PreTrainedConfig) -> PreTrainedModel:
    """A random policy whose adapter changes it."""
    model = AutoModelForCausalLM.from_config(config).eval()
    add_adapter(model, AdapterConfig(rank=2, alpha=4, experts=True), 0)
    for _, layer in adapted_weights(model):
        torch.nn.init.normal_(layer.lora_B[ADAPTER].weight)
    return model


@pytest.fixture(scope="module", params=["qwen3_moe", "hybrid"])
def policy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "qwen3_moe":
        return write_policy("qwen3_moe", folder)
    build_policy(TinyHybrid(), ["<|im_start|>user\n1+1=?<|im_end|>\n"] * 200, folder, 0, NemotronFormat())
    return folder


def trained(policy: Path, **learner_keys: Any) -> Learner:
    learner = Learner(policy, config_of(policy, ADAPTED, learner_keys))
    for _ in range(2):  # B begins at 0, so A moves in the second update only
        learner.update(samples_of(policy))
    return learner


def test_each_expert_is_trained_and_the_learner_computes_what_the_merged_policy_does(policy: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(policy).eval()
    learner = trained(policy)
    plain = logprobs(base, policy, torch.float32)
    with without_adapter(learner.model):
        assert torch.equal(logprobs(learner.model, policy, torch.float32), plain)
    state, before = merged_state(learner.model), base.state_dict()
    assert state.keys() == before.keys()
    stacks = [name for name, layer in adapted_weights(learner.model) if is_adapted_experts(layer)]
    assert stacks and all(".experts." in name and state[name].dim() == 3 for name in stacks)
    moved = [not torch.equal(state[name][one], before[name][one]) for name in stacks for one in range(len(state[name]))]
    assert sum(moved) > len(moved) / 2  # but for experts that no token was sent to
    base.load_state_dict(state)
    assert torch.allclose(
        logprobs(base, policy, torch.float32), logprobs(learner.model, policy, torch.float32), atol=1e-6
    )
    assert not torch.allclose(logprobs(base, policy, torch.float32), plain, atol=1e-3)


def test_peft_loads_what_is_saved_and_computes_the_same(policy: Path, tmp_path: Path) -> None:
    learner = trained(policy)
    learner.save_state(tmp_path)
    by_peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(policy).eval(), str(tmp_path / "adapter"))
    merged = AutoModelForCausalLM.from_pretrained(policy).eval()
    merged.load_state_dict(merged_state(learner.model))
    assert torch.allclose(logits(by_peft), logits(merged), atol=1e-5)
    again = Learner(policy, config_of(policy, ADAPTED))
    again.load_state(tmp_path)
    first, second = learner.update(samples_of(policy)), again.update(samples_of(policy))
    assert (first.loss, first.grad_norm) == (second.loss, second.grad_norm)
    assert torch.equal(logprobs(learner.model, policy, torch.float32), logprobs(again.model, policy, torch.float32))


def test_engines_that_receive_the_adapter_alone_merge_what_the_learner_would(policy: Path) -> None:
    learner = trained(policy)
    base = checkpoint_tensors(learner.model, "float32", is_merged=False)
    adapter = dict(adapter_tensors(learner.model))
    assert sum(".experts.0." in name for name in adapter) > 0
    received = dict(with_adapter(base, adapter, 2.0, torch.device("cpu")))
    expected = dict(checkpoint_tensors(learner.model, "float32"))
    assert received.keys() == expected.keys()
    for name in expected:
        assert torch.allclose(received[name], expected[name], rtol=0, atol=1e-7), name


@pytest.mark.parametrize("config", [GptOssConfig(**STACKED), GraniteMoeConfig(**STACKED)], ids=["gpt_oss", "granite"])
def test_experts_that_checkpoints_stack_are_published_stacked(config: PreTrainedConfig) -> None:
    model = random_adapter(config)
    base, adapter = checkpoint_tensors(model, "float32", is_merged=False), dict(adapter_tensors(model))
    stacks = [name for name, tensor in adapter.items() if tensor.dim() == 3]
    assert len(stacks) == 4 and len(adapter) > len(stacks)  # A and B of two tensors, and other layers'
    received = dict(with_adapter(base, adapter, 2.0, torch.device("cpu")))
    expected = dict(checkpoint_tensors(model, "float32"))
    assert received.keys() == expected.keys()
    for name in expected:
        assert torch.allclose(received[name], expected[name], rtol=0, atol=1e-6), name


def test_experts_that_checkpoints_store_transposed_are_not_published_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_adapter(GptOssConfig(**STACKED))
    monkeypatch.setattr(
        "rl.weights.names.revert_weight_conversion",
        lambda _, tensors: {name: tensor.transpose(-1, -2) for name, tensor in tensors.items()},
    )
    with pytest.raises(WeightsError, match=r"transposed.*set learner\.adapter\.publish: merged"):
        dict(adapter_tensors(model))


def test_recomputed_layers_give_the_same_weights(policy: Path) -> None:
    plain = trained(policy)
    recomputed = trained(policy, activation_checkpointing=True)
    pairs = zip(plain.model.named_parameters(), recomputed.model.named_parameters(), strict=True)
    for (name, one), (_, other) in pairs:
        assert torch.equal(one, other), name


def test_experts_that_are_stored_transposed_are_merged_as_peft_does() -> None:
    model = random_adapter(GptOssConfig(**STACKED))
    found = merged_experts(model, torch.float32)
    assert len(found) == 2
    layers = {name: layer for name, layer in adapted_weights(model) if is_adapted_experts(layer)}
    for path, weight in found.items():
        layer = layers[path.replace(".base_layer", "")]
        assert torch.allclose(weight, layer.get_param() + layer.get_delta_weight(ADAPTER), atol=1e-6)


def test_a_policy_without_experts_is_told(tmp_path: Path) -> None:
    dense = write_policy("qwen3", tmp_path)
    with pytest.raises(AdapterError, match=r"adapter\.experts is set, but Qwen3ForCausalLM has no experts; remove it"):
        Learner(dense, config_of(dense, ADAPTED))
