"""Which weights are quantised, what the learner computes with, and what travels to the engine."""

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from rl.precision.amax import shared_amax
from rl.precision.folded import FoldedWeights, quantised_names
from rl.precision.formats.bf16 import Bf16
from rl.precision.formats.nvfp4 import TENSOR_SCALE, Nvfp4
from rl.precision.number_format import PrecisionError
from rl.precision.nvfp4 import dequantise, quantise
from rl.weights.names import checkpoint_tensors, restored_tensors
from rl.weights.shared_memory import read_weights, write_weights
from tests.families import MODELS, SIZES, write_policy
from tests.test_engine import random_policy

NVFP4 = Nvfp4()
EVERYTHING = Nvfp4(keep=("*lm_head*",))


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(32, 16, bias=False), nn.Linear(32, 16, bias=False)
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(32, 32) for _ in range(4))
        self.norm, self.conv1d, self.embed_tokens = nn.LayerNorm(32), nn.Conv1d(32, 32, 4), nn.Embedding(50, 32)
        self.lm_head = nn.Linear(32, 50, bias=False)


def test_experts_are_quantised_and_sensitive_layers_are_not(tmp_path: Path) -> None:
    names = quantised_names(random_policy(tmp_path, seed=0), NVFP4)
    kinds = {name.split("mixer.")[1] for name in names}
    assert kinds == {
        "experts.up_proj",
        "experts.down_proj",
        "shared_experts.up_proj.weight",
        "shared_experts.down_proj.weight",
    }


def test_patterns_say_what_is_kept() -> None:
    model = Gated()
    assert quantised_names(model, NVFP4) == ("gate_proj.weight", "up_proj.weight")
    names = quantised_names(model, EVERYTHING)
    assert set(names) == {f"{name}_proj.weight" for name in ("gate", "up", "q", "k", "v", "o")}


def test_nothing_to_quantise_and_weights_without_blocks_are_errors() -> None:
    with pytest.raises(PrecisionError, match="nothing to quantise"):
        FoldedWeights(nn.LayerNorm(16), NVFP4)
    with pytest.raises(PrecisionError, match=r"0\.weight: .*\(8, 24\).*precision\.keep"):
        FoldedWeights(nn.Sequential(nn.Linear(24, 8)), NVFP4)


def test_matrices_that_engines_fuse_share_a_tensor_scale() -> None:
    model = Gated()
    with torch.no_grad():
        model.k_proj.weight.mul_(50)
        model.up_proj.weight.mul_(30)
    folded = FoldedWeights(model, EVERYTHING).quantised
    scales = {name.removesuffix("_proj.weight"): parts[TENSOR_SCALE].item() for name, parts in folded.items()}
    assert scales["q"] == scales["k"] == scales["v"] > scales["o"]
    assert scales["gate"] == scales["up"]
    largest = shared_amax(
        {"a.q_proj": torch.ones(1, 1), "a.v_proj": torch.full((1, 1), 3.0), "b.q_proj": torch.ones(1, 1)}
    )
    assert {name: value.item() for name, value in largest.items()} == {
        "a.q_proj": 3.0,
        "a.v_proj": 3.0,
        "b.q_proj": 1.0,
    }


def test_a_head_that_is_tied_to_embeddings_is_kept_by_the_learner_as_by_what_is_published(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(write_policy("qwen3", tmp_path), dtype=torch.float32)
    number_format = Nvfp4(keep=("*embed*", "*[qkvo]_proj.*"))
    folded = FoldedWeights(model, number_format)
    published = checkpoint_tensors(model, "float32", folded.quantised)
    restored = dict(restored_tensors(published, number_format, torch.float32))
    assert "mlp" in folded.describe() and "lm_head" not in folded.describe()
    with folded.in_place():
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, restored.get(name, restored["model.embed_tokens.weight"])), name
    untied = MODELS["qwen3"][1](**{**SIZES, "head_dim": 32, "tie_word_embeddings": False})
    names = quantised_names(AutoModelForCausalLM.from_config(untied), number_format)
    assert {*names} == {*folded.quantised, "lm_head.weight"}


def test_inside_the_model_computes_with_folded_weights_and_outside_it_holds_the_masters() -> None:
    layer = nn.Linear(32, 16, bias=False)
    model = nn.Sequential(layer)
    master = layer.weight.detach().clone()
    folded = FoldedWeights(model, NVFP4)
    x = torch.randn(4, 32)
    with folded.in_place():
        value = model(x)
        value.square().sum().backward()
    assert torch.equal(layer.weight, master)

    explicit = dequantise(quantise(master, NVFP4)).requires_grad_()
    (x @ explicit.T).square().sum().backward()
    assert layer.weight.grad is not None
    torch.testing.assert_close(layer.weight.grad, explicit.grad)
    torch.testing.assert_close(value, x @ dequantise(quantise(master, NVFP4)).T)


def test_masters_come_back_after_an_error() -> None:
    layer = nn.Linear(32, 16)
    model = nn.Sequential(layer)
    master = layer.weight.detach().clone()
    with pytest.raises(ZeroDivisionError), FoldedWeights(model, NVFP4).in_place():
        raise ZeroDivisionError
    assert torch.equal(layer.weight, master)


def test_folded_weights_cannot_be_put_in_twice_or_folded_again_while_in() -> None:
    folded = FoldedWeights(nn.Sequential(nn.Linear(32, 16)), NVFP4)
    with folded.in_place():
        with pytest.raises(AssertionError):
            folded.put_in()
        with pytest.raises(AssertionError):
            folded.refresh()
    with pytest.raises(AssertionError):
        folded.take_out()


def test_the_share_of_changed_codes_is_counted() -> None:
    layer = nn.Linear(32, 16, bias=False)
    model = nn.Sequential(layer)
    with torch.no_grad():
        layer.weight.copy_(torch.full((16, 32), 4.0))
        layer.weight[0, 0] = 6.0
    folded = FoldedWeights(model, NVFP4)
    assert folded.refresh() == 0.0
    with torch.no_grad():
        layer.weight[3, 5] = 2.0
        layer.weight[4, 7] = 3.99  # stays at 4
    assert folded.refresh() == 1 / (16 * 32)


def test_other_formats_fold_nothing() -> None:
    model = nn.Sequential(nn.Linear(5, 3))
    folded = FoldedWeights(model, Bf16())
    assert folded.quantised == {}
    assert folded.refresh() == 0.0
    assert "bf16" in folded.describe()


def test_the_description_counts_bits() -> None:
    """512 of 1,024 weights at 4.5 bits and 512 at 16: 10.25."""
    model = nn.Sequential(nn.Linear(32, 16, bias=False), nn.Embedding(16, 32))
    assert "50% of" in FoldedWeights(model, NVFP4).describe()
    assert "10.25 bits a weight" in FoldedWeights(model, NVFP4).describe()


@pytest.mark.parametrize("options", [{}, {"tensor_scale": "float32"}, {"four_over_six": "mse"}, {"block": "16x16"}])
def test_the_engine_gets_exactly_what_the_learner_computes_with(tmp_path: Path, options: dict[str, str]) -> None:
    precision = Nvfp4.model_validate(options)
    model = random_policy(tmp_path, seed=0)
    folded = FoldedWeights(model, precision)
    source = write_weights(checkpoint_tensors(model, "bfloat16", folded.quantised), 1, tmp_path / "published")
    sent = dict(read_weights(source).tensors)
    arrived = dict(restored_tensors(sent.items(), NVFP4, torch.bfloat16))
    with folded.in_place():
        expected = dict(checkpoint_tensors(model, "bfloat16"))
    assert arrived.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(arrived[name], tensor), name
    codes = [name for name, tensor in sent.items() if tensor.dtype == torch.uint8]
    assert len(codes) == 2 * 8 * 2 + 2 * 2  # two layers of eight experts and one shared, two matrices each
    assert all(sent[name + "_scale"].dtype == torch.float8_e4m3fn for name in codes)
    num = sum(expected[name].numel() for name in codes)
    num_bytes = sum(sent[name + end].nbytes for name in codes for end in ("", "_scale", "_scale_2"))
    assert num_bytes == num * 4.5 / 8 + 4 * len(codes)


def test_weights_that_are_merely_named_like_scales_arrive() -> None:
    weight, scale = torch.ones(4, 4), torch.ones(1)
    sent = {"head.weight": weight, "head.weight_scale": scale, "logit_scale": scale, "norm.weight_scale_2": scale}
    assert dict(restored_tensors(sent.items(), NVFP4, torch.bfloat16)) == sent
