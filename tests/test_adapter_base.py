"""The frozen base of an adapter is held in the format of `precision`, and computes what float32 weights of it would."""

from pathlib import Path
from typing import Any

import pytest
import torch

from rl.chat.formats.nemotron import NemotronFormat
from rl.config.policy import TinyHybrid
from rl.learner.adapter import add_adapter
from rl.learner.batching import make_batches
from rl.learner.forward import policy_logprobs
from rl.learner.learner import Learner
from rl.learner.policy import load_policy
from rl.policies import build_policy
from rl.precision.float32_weights import float32_weights
from rl.precision.folded import FoldedWeights
from rl.weights.merged import adapted_weights, base_state, merged, merged_state
from tests.families import write_policy
from tests.test_adapter_training import config_of, samples_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["qwen3", "hybrid"])
def policy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "qwen3":
        return write_policy("qwen3", folder)
    build_policy(TinyHybrid(), ["<|im_start|>user\n1+1=?<|im_end|>\n"] * 200, folder, 0, NemotronFormat())
    return folder


def logprobs(model: Any, policy: Path, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    (batch,) = make_batches(samples_of(policy), 4096, 0)
    with torch.no_grad():
        return policy_logprobs(model, batch, dtype, 1.0, 1024)[0]


def test_a_bfloat16_base_takes_two_bytes_a_weight_and_computes_what_a_float32_base_does(policy: Path) -> None:
    learner = Learner(policy, config_of(policy, precision="bf16"))
    held = dict(learner.model.named_parameters())
    in_float32 = float32_weights(learner.model)
    assert all((".lora_" in name) == parameter.requires_grad for name, parameter in held.items())
    for name, parameter in held.items():
        is_float32 = name in in_float32 or parameter.requires_grad
        assert parameter.dtype == (torch.float32 if is_float32 else torch.bfloat16), name

    config = learner._config.learner.adapter
    assert config is not None
    before = load_policy(policy)  # float32, as without an adapter
    add_adapter(before, config, 0)
    assert torch.equal(logprobs(learner.model, policy), logprobs(before, policy))
    learner.update(samples_of(policy))
    trained = {name: parameter.data for name, parameter in held.items() if parameter.requires_grad}
    before.load_state_dict(trained, strict=False)
    assert torch.equal(logprobs(learner.model, policy), logprobs(before, policy))
    moments = [tensor for state in learner._optimizer.state.values() for tensor in state.values()]
    assert len(moments) == 3 * len(trained) and all(moment.dtype == torch.float32 for moment in moments)


def test_an_nvfp4_base_holds_the_values_of_its_codes_and_never_changes(policy: Path) -> None:
    learner = Learner(policy, config_of(policy, precision="nvfp4"))
    plain = load_policy(policy)
    folded = FoldedWeights(plain, learner._config.precision)
    assert learner.folded.quantised.keys() == folded.quantised.keys()
    folded.put_in()
    state = base_state(learner.model)
    assert state.keys() == plain.state_dict().keys()
    for name, values in plain.state_dict().items():
        assert torch.equal(state[name].float(), values.to(state[name].dtype).float()), name
    kept = {name: values.clone() for name, values in state.items()}
    update = learner.update(samples_of(policy))
    assert update.codes_changed == 0.0 and update.grad_norm > 0.0
    assert all(torch.equal(values, kept[name]) for name, values in base_state(learner.model).items())


def test_merging_adds_the_product_in_float32(policy: Path) -> None:
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.bfloat16)
    a, b = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0], [0.001]])
    assert torch.equal(merged(weight, a, b, 2.0), torch.tensor([[3.0, 4.0], [0.002, 1.004]]))
    learner = Learner(policy, config_of(policy, precision="bf16"))
    learner.update(samples_of(policy))
    state = merged_state(learner.model)
    for name, layer in adapted_weights(learner.model):
        by_peft = layer.base_layer.weight + layer.get_delta_weight("default")
        assert torch.equal(state[name], by_peft)
