"""A low-rank adapter trains, is merged for the engines, saved in peft's format, and leaves the base as it was."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from rl.config.experiment import ExperimentConfig
from rl.data_types import Sample
from rl.learner import learner as learner_module
from rl.learner.adapter import AdapterError, without_adapter
from rl.learner.learner import Learner, LearnerStateError
from rl.learner.policy import load_policy
from rl.policies import build_policy
from rl.weights.merged import merged_state
from tests.families import write_policy
from tests.makers import make_config
from tests.test_learner import make_sample, on_policy

pytestmark = pytest.mark.slow


def config_of(
    policy: Path, adapter: dict[str, Any] | None = None, more: dict[str, Any] | None = None, **sections: Any
) -> ExperimentConfig:
    learner = {
        "learning_rate": 1e-2,
        "warmup_steps": 0,
        "adapter": {"rank": 4, "alpha": 8} if adapter is None else adapter,
        **(more or {}),
    }
    return make_config(policy={"path": policy, "max_tokens": 256}, learner=learner, **sections)


@pytest.fixture(scope="module", params=["qwen3", "llama"])
def policy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_policy(request.param, tmp_path_factory.mktemp(request.param))


def samples_of(policy: Path) -> list[Sample]:
    rows = [make_sample([3 * row + place for place in range(9)], advantage=(-1.0) ** row) for row in range(4)]
    return on_policy(AutoModelForCausalLM.from_pretrained(policy).eval(), rows)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(40).reshape(2, 20)).logits


def test_training_begins_at_the_checkpoint_and_moves_only_the_adapter(policy: Path) -> None:
    learner = Learner(policy, config_of(policy))
    base = AutoModelForCausalLM.from_pretrained(policy).eval()
    assert torch.equal(logits(learner.model), logits(base))
    trained = {name for name, parameter in learner.model.named_parameters() if parameter.requires_grad}
    assert trained and all(".lora_A." in name or ".lora_B." in name for name in trained)
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in trained} == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    }
    learner.update(samples_of(policy))
    assert not torch.allclose(logits(learner.model), logits(base), atol=1e-3)
    with without_adapter(learner.model):
        assert torch.equal(logits(learner.model), logits(base))


def test_merged_weights_compute_what_the_adapter_does(policy: Path) -> None:
    learner = Learner(policy, config_of(policy))
    learner.update(samples_of(policy))
    merged = AutoModelForCausalLM.from_pretrained(policy).eval()
    state = merged_state(learner.model)
    assert state.keys() == merged.state_dict().keys()
    merged.load_state_dict(state)
    assert torch.allclose(logits(merged), logits(learner.model), atol=1e-5)
    name = "model.layers.0.self_attn.q_proj"
    layer: Any = learner.model.get_submodule(name)
    by_hand = layer.base_layer.weight + 8 / 4 * layer.lora_B.default.weight @ layer.lora_A.default.weight
    assert torch.allclose(state[f"{name}.weight"], by_hand)


def test_the_reference_is_the_model_without_its_adapter(policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loss = {"reference_kl": 0.1}
    samples = samples_of(policy)
    loaded = []
    monkeypatch.setattr(learner_module, "load_policy", lambda path: loaded.append(path) or load_policy(path))
    with_adapter = Learner(policy, config_of(policy, loss=loss))
    assert loaded == [policy]  # and no second model
    first, second = with_adapter.update(samples), with_adapter.update(samples)
    assert first.measures["reference_kl"] == pytest.approx(0.0, abs=1e-9)
    assert second.measures["reference_kl"] > 0.0


def test_the_attention_of_a_hybrid_can_have_an_adapter_and_its_experts_stay(tmp_path: Path) -> None:
    from rl.chat.formats.nemotron import NemotronFormat
    from rl.config.policy import TinyHybrid

    build_policy(TinyHybrid(), ["<|im_start|>user\n1+1=?<|im_end|>\n"] * 200, tmp_path, 0, NemotronFormat())
    learner = Learner(tmp_path, config_of(tmp_path))
    before = {name: tensor.clone() for name, tensor in merged_state(learner.model).items()}
    learner.update(samples_of(tmp_path))
    after = merged_state(learner.model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and not any(".experts." in name or "e_score_correction_bias" in name for name in changed)


def test_what_cannot_be_adapted_is_told(policy: Path, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"targets qkv match no layer .*linear layers of .*: .*q_proj"):
        Learner(policy, config_of(policy, {"targets": ["qkv"]}))
    with pytest.raises(ValueError, match=r"'\(' is not a regular expression"):
        config_of(policy, {"targets": ["("]})
    with pytest.raises(ValueError, match=r"publish: merged does not go with precision nvfp4.*publish: adapter"):
        config_of(policy, {"publish": "merged"}, precision="nvfp4")
    Learner(policy, config_of(policy)).save_state(tmp_path)
    with pytest.raises(LearnerStateError, match="holds another adapter"):
        Learner(policy, config_of(policy, {"rank": 8})).load_state(tmp_path)
