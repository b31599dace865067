"""Routers: what an expert bias learns from, which routers are frozen, and which are refused."""

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GptOssConfig,
    GraniteMoeConfig,
    JambaConfig,
    LlamaConfig,
    MixtralConfig,
    OlmoeConfig,
    PreTrainedConfig,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)
from transformers.core_model_loading import revert_weight_conversion

from rl.config.learner import LearnerConfig
from rl.learner.learner import Learner
from rl.learner.router import RouterBalancer, UnsupportedRouterError, freeze_routers
from rl.plan.shapes import PolicyShapes
from tests.families import MODELS, SIZES, write_policy
from tests.test_learner import config_with, make_sample, on_policy, weights

LOCAL: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
MIXTURES: dict[str, PreTrainedConfig] = {
    "qwen2_moe": Qwen2MoeConfig(**SIZES, **EXPERTS, shared_expert_intermediate_size=64),
    "qwen3_moe": Qwen3MoeConfig(**SIZES, **EXPERTS),
    "olmoe": OlmoeConfig(**SIZES, **EXPERTS),
    "mixtral": MixtralConfig(**SIZES, **LOCAL),
    "gpt_oss": GptOssConfig(**SIZES, **LOCAL, head_dim=32),
    "granitemoe": GraniteMoeConfig(**SIZES, **LOCAL),
    "nemotron": MODELS["nemotron"][1](**{**SIZES, **MODELS["nemotron"][3]}),
}


class StandInRouter(torch.nn.Module):
    """Sends each token to the experts it names."""

    def __init__(self):
        super().__init__()
        self.e_score_correction_bias = torch.nn.Buffer(torch.zeros(4))

    def forward(self, chosen: torch.Tensor) -> Any:
        return torch.zeros(1), torch.zeros(1), chosen


def test_the_bias_falls_for_overloaded_experts_and_padding_does_not_count():
    router = StandInRouter()
    balancer = RouterBalancer(torch.nn.ModuleList([router]), rate=0.5)
    balancer.counts = torch.tensor([[True, True], [True, False]])
    router(torch.tensor([[0, 1], [0, 1], [0, 2], [3, 3]]))  # the last token is padding
    (load,) = balancer.loads()
    assert load.tolist() == [[3, 2, 1, 0], [0, 0, 0, 0]]
    balancer.update()  # mean load 1.5
    assert router.e_score_correction_bias.tolist() == [-0.5, -0.5, 0.5, 0.5]
    balancer.forget()
    balancer.update()
    assert router.e_score_correction_bias.tolist() == [-0.5, -0.5, 0.5, 0.5]


def test_tokens_that_stand_for_others_count_as_many():
    router = StandInRouter()
    balancer = RouterBalancer(torch.nn.ModuleList([router]), rate=0.5)
    for is_measuring, chosen in ((True, [[0, 1]]), (False, [[2, 3], [2, 3]])):
        balancer.is_measuring, balancer.counts = is_measuring, torch.ones((1, len(chosen)), dtype=torch.bool)
        router(torch.tensor(chosen))
    (load,) = balancer.loads()
    assert load.tolist() == [[0, 0, 2, 2], [1, 1, 0, 0]]
    balancer.update(measured_weight=5.0)  # loads 5, 5, 2, 2
    assert router.e_score_correction_bias.tolist() == [-0.5, -0.5, 0.5, 0.5]


def test_a_router_that_hides_its_choice_is_refused():
    class Mute(StandInRouter):
        def forward(self, chosen: torch.Tensor) -> Any:
            return torch.zeros(1)

    router = Mute()
    balancer = RouterBalancer(torch.nn.ModuleList([router]), rate=0.5)
    balancer.counts = torch.tensor([[True]])
    with pytest.raises(UnsupportedRouterError, match="expert_bias_rate: 0"):
        router(torch.tensor([[0, 1]]))


def shapes_of(tensors: dict[str, torch.Tensor], config: PreTrainedConfig) -> PolicyShapes:
    return PolicyShapes.of({name: tuple(tensor.shape) for name, tensor in tensors.items()}, config.to_dict())


@pytest.mark.parametrize("kind", MIXTURES)
def test_routers_of_each_family_are_frozen_and_the_plan_counts_alike(kind: str) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(MIXTURES[kind])
    freeze_routers(model)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    layers = {name.rpartition(".experts.")[0] for name, _ in model.named_parameters() if ".experts." in name}
    assert {name.rpartition(".")[0] for name in frozen} == {f"{layer}.{router_name(kind)}" for layer in layers}
    num_trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    saved = revert_weight_conversion(model, model.state_dict())
    for tensors in (model.state_dict(), saved):
        assert shapes_of(tensors, model.config).num_trained(LearnerConfig()) == num_trained


def router_name(kind: str) -> str:
    return "router" if kind in ("gpt_oss", "granitemoe") else "gate"


def test_a_router_without_an_expert_bias_stays_as_it_was(tmp_path) -> None:
    path = write_policy("qwen3_moe", tmp_path)
    samples = on_policy(AutoModelForCausalLM.from_pretrained(path), [make_sample([3, 5, 7, 9, 11, 13], advantage=1.0)])
    for freeze in (True, False):
        learner = Learner(path, config_with(freeze_router=freeze))
        before = weights(learner)
        learner.update(samples)
        moved = {name for name, tensor in weights(learner).items() if not torch.equal(tensor, before[name])}
        assert any(name.endswith("q_proj.weight") for name in moved)
        assert any(name.endswith(".gate.weight") for name in moved) == (not freeze)


def test_a_router_that_is_not_found_is_refused() -> None:
    """Jamba's is a linear layer of a module that chooses."""
    config = JambaConfig(**SIZES, num_experts=4, mamba_d_state=4, attn_layer_period=2, attn_layer_offset=1)
    with torch.device("meta"):
        jamba, dense = AutoModelForCausalLM.from_config(config), AutoModelForCausalLM.from_config(LlamaConfig(**SIZES))
    with pytest.raises(
        UnsupportedRouterError, match=r"JambaForCausalLM has experts, but no router that learner\.freeze"
    ):
        freeze_routers(jamba)
    freeze_routers(dense)
    assert all(parameter.requires_grad for parameter in dense.parameters())
