"""The plan counts weights, caches and trained parts of published models as transformers and peft have them."""

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedConfig, PreTrainedModel

from rl.config.learner import LearnerConfig
from rl.config.policy import TinyHybrid
from rl.learner.adapter import add_adapter
from rl.learner.replay import scoring_of
from rl.learner.router import freeze_routers, routers_of
from rl.plan.policy import checkpoint_shapes
from rl.plan.shapes import PolicyShapes, UnknownShapesError
from rl.policies import hybrid_config
from rl.precision.float32_weights import float32_weights
from rl.precision.folded import quantised_names
from rl.precision.formats.nvfp4 import Nvfp4
from tests.families import write_policy
from tests.published_models import PUBLISHED, on_meta

SMALL = ("Qwen3-0.6B", "Qwen3-30B-A3B", "Nemotron-3-Nano", "Nemotron-3-Super")
"""One of each kind."""


def shapes_of(model: PreTrainedModel) -> PolicyShapes:
    tensors = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    return PolicyShapes.of(tensors, model.config.to_dict())


@pytest.mark.parametrize(
    ("name", "num", "num_active", "num_cached"),
    [
        ("Qwen3-0.6B", 596_049_920, 0.596e9, 28 * 2 * 8 * 128),
        ("Qwen3-1.7B", 1_720_574_976, 1.72e9, 28 * 2 * 8 * 128),
        ("Qwen3-4B", 4_022_468_096, 4.02e9, 36 * 2 * 8 * 128),
        ("Qwen3-8B", 8_190_735_360, 7.57e9, 36 * 2 * 8 * 128),  # an untied embedding computes nothing
        ("Qwen3-14B", 14_768_307_200, 13.99e9, 40 * 2 * 8 * 128),
        ("Qwen3-32B", 32_762_123_264, 31.98e9, 64 * 2 * 8 * 128),
        ("Qwen3-30B-A3B", 30_532_122_624, 3.04e9, 48 * 2 * 4 * 128),
        ("Llama-3.2-1B", 1_235_814_400, 1.236e9, 16 * 2 * 8 * 64),
        ("SmolLM2-135M", 134_515_008, 0.1345e9, 30 * 2 * 3 * 64),
        ("Nemotron-3-Nano", 31.6e9, 3.2e9, 6 * 2 * 2 * 128),
        ("Nemotron-3-Super", 120.6e9, 12.7e9 - 131072 * 4096, 8 * 2 * 2 * 128),
    ],
)
def test_weights_and_cached_numbers_are_those_that_the_models_are_published_with(
    name: str, num: float, num_active: float, num_cached: int
) -> None:
    model = on_meta(PUBLISHED[name]())
    shapes = shapes_of(model)
    assert shapes.num_weights == model.num_parameters()
    assert shapes.num_weights == (num if isinstance(num, int) else pytest.approx(num, rel=0.01))
    assert shapes.num_active_weights == pytest.approx(num_active, rel=0.02)
    assert shapes.num_cached == num_cached


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_caches_are_as_large_as_those_of_transformers(name: str) -> None:
    model = on_meta(PUBLISHED[name]()).bfloat16()
    with torch.no_grad():
        layers = model(input_ids=torch.zeros(1, 8, dtype=torch.long, device="meta"), use_cache=True)[1].layers
    attention = [layer for layer in layers if getattr(layer, "keys", None) is not None]
    linear = [layer for layer in layers if getattr(layer, "recurrent_states", {}).get(0) is not None]
    shapes = shapes_of(model)
    assert (len(attention), len(linear)) == (shapes.num_attention_layers, shapes.num_linear_layers)
    assert sum(layer.keys.numel() + layer.values.numel() for layer in attention) == 8 * shapes.num_cached
    states = sum(layer.recurrent_states[0].nbytes + layer.conv_states[0].nbytes for layer in linear)
    assert shapes.state_bytes(2) == pytest.approx(states, rel=0.01)  # vLLM keeps one input of the convolution less


def test_a_state_is_counted_by_hand() -> None:
    """The tiny hybrid has two Mamba layers of 8 heads of 32 x 32, with convolutions of 4 over 256 + 2 * 32 numbers."""
    shapes = shapes_of(on_meta(hybrid_config(TinyHybrid())))
    assert shapes.state_bytes(4) == 2 * (8 * 32 * 32 * 4 + 320 * 3 * 4)
    assert shapes.state_bytes(2) == 2 * (8 * 32 * 32 * 4 + 320 * 3 * 2)


@pytest.mark.parametrize("name", SMALL)
def test_the_same_weights_are_quantised_kept_in_float32_and_frozen_as_in_a_run(name: str) -> None:
    model = on_meta(PUBLISHED[name]())
    shapes = shapes_of(model)
    number_format = Nvfp4(keep=("*lm_head*", "*[qkvo]_proj.*"))
    quantised = [tuple(model.get_parameter(name).shape) for name in quantised_names(model, number_format)]
    assert sorted(shapes.quantised(number_format)) == sorted(quantised)
    names = {name for name, _ in model.named_parameters() if shapes.is_float32(name)}
    assert names == float32_weights(model)
    for freeze in (True, False):
        model.requires_grad_(True)
        if freeze:
            freeze_routers(model)
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        assert shapes.num_trained(LearnerConfig(freeze_router=freeze)) == trained


@pytest.mark.parametrize("targets", [("[qkvo]_proj", "(gate|up|down)_proj"), (".*in_proj", "q_proj")])
@pytest.mark.parametrize("config", [PUBLISHED["Qwen3-0.6B"], lambda: hybrid_config(TinyHybrid())])
def test_an_adapter_has_as_many_weights_as_peft_gives_it(config: object, targets: tuple[str, ...]) -> None:
    assert callable(config)
    made = config()
    assert isinstance(made, PreTrainedConfig)
    model = on_meta(made)
    learner = LearnerConfig.model_validate({"adapter": {"rank": 4, "targets": targets}})
    assert learner.adapter is not None
    expected = shapes_of(model).num_trained(learner)
    add_adapter(model, learner.adapter, seed=0)
    assert expected == sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) > 0


def test_an_adapter_is_counted_by_hand() -> None:
    """A layer of Qwen3-0.6B: q and o 1024 x 2048, k and v 1024 x 1024, three matrices of 1024 x 3072."""
    learner = LearnerConfig.model_validate({"adapter": {"rank": 16}})
    shapes = shapes_of(on_meta(PUBLISHED["Qwen3-0.6B"]()))
    assert shapes.num_trained(learner) == 28 * 16 * (2 * 3072 + 2 * 2048 + 3 * 4096)


@pytest.mark.parametrize("kind", ["qwen3", "qwen3_moe", "llama"])
def test_the_files_of_a_checkpoint_the_live_model_and_config_json_alone_count_alike(kind: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = write_policy(kind, tmp_path)
    live = shapes_of(AutoModelForCausalLM.from_pretrained(folder))
    saved = checkpoint_shapes(folder)
    (folder / "model.safetensors").unlink()
    for shapes in (saved, checkpoint_shapes(folder)):
        assert shapes.num_weights == live.num_weights
        assert shapes.num_active_weights == live.num_active_weights
        assert shapes.num_cached == live.num_cached == 2 * 2 * 32
        assert sum(map(sum, shapes.quantised(Nvfp4(keep=())))) > 0


def test_tensors_that_transformers_leaves_out_do_not_count() -> None:
    tensors = {"model.embed_tokens.weight": (8, 4), "lm_head.weight": (8, 4), "mtp.layers.0.eh_proj.weight": (4, 8)}
    assert PolicyShapes.of(tensors, {"tie_word_embeddings": True}).num_weights == 32
    assert PolicyShapes.of(tensors, {}).num_weights == 64


def test_fused_projections_are_counted_by_config_json() -> None:
    tensors = {"model.embed_tokens.weight": (8, 64), "model.layers.0.self_attn.qkv_proj.weight": (128, 64)}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    assert PolicyShapes.of(tensors, {"hidden_size": 64, **heads}).num_cached == 2 * 2 * 16
    assert PolicyShapes.of(tensors, {"text_config": {"head_dim": 32, **heads}}).num_cached == 2 * 2 * 32
    with pytest.raises(UnknownShapesError, match="none of num_attention_heads, n_head"):
        _ = PolicyShapes.of(tensors, {}).num_cached
    unknown = {"model.tok.weight": (8, 64), "model.layers.0.attention.wqkv.weight": (128, 64)}
    assert PolicyShapes.of(unknown, {"num_hidden_layers": 3, "hidden_size": 64, **heads}).num_cached == 3 * 2 * 2 * 16
    with pytest.raises(UnknownShapesError, match="none of num_hidden_layers, n_layer"):
        _ = PolicyShapes.of(unknown, heads).num_cached


def test_what_config_json_does_not_tell_is_an_error() -> None:
    experts = PolicyShapes.of({"layers.0.mlp.experts.down_proj": (4, 8, 8)}, {"num_experts": 4})
    with pytest.raises(UnknownShapesError, match="none of num_experts_per_tok"):
        _ = experts.expert_share
    with pytest.raises(UnknownShapesError, match="does not tell the state of its linear-attention layers"):
        PolicyShapes.of({"layers.0.A_log": (4,)}, {}).state_bytes(2)


@pytest.mark.parametrize(
    ("name", "num_layers", "num_bytes"),
    [
        ("Qwen3-0.6B", 0, 0),
        ("Qwen3-30B-A3B", 48, 48 * 8),
        ("Nemotron-3-Nano", 23, 23 * 6),
        ("Nemotron-3-Super", 40, 40 * 22 * 2),
    ],
)
def test_the_experts_of_a_token_take_bytes_and_their_routers_can_replay(
    name: str, num_layers: int, num_bytes: int
) -> None:
    model = on_meta(PUBLISHED[name]())
    assert shapes_of(model).route_bytes == num_bytes
    routers = list(routers_of(model))
    assert len(routers) == num_layers
    for router in routers[:1]:
        scoring_of(router, model.config)
