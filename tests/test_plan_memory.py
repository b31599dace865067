"""The plan's memory by part: counted by hand, and as learners, publishers and autograd have it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

from rl.chat.formats.nemotron import NemotronFormat
from rl.config.experiment import ExperimentConfig
from rl.config.policy import TinyHybrid
from rl.data_types import Batch
from rl.learner.forward import policy_logprobs
from rl.learner.learner import Learner
from rl.plan.engine import engine_memory, sequence_bytes
from rl.plan.memory import GIB, activation_bytes, learner_parts, published_bytes
from rl.plan.policy import checkpoint_shapes, policy_shapes
from rl.plan.shapes import PolicyShapes
from rl.policies import build_policy, hybrid_config, random_hybrid
from rl.precision.folded import FoldedWeights
from rl.weights.names import checkpoint_tensors
from rl.weights.shared_memory import write_weights
from tests.families import MODELS, SIZES, write_policy
from tests.makers import make_config
from tests.published_models import PUBLISHED, long_config, shapes_of
from tests.test_learner import make_sample

HYBRID = TinyHybrid()
NUM = 596_049_920
"""Weights of Qwen3-0.6B."""
SMALL = shapes_of(PUBLISHED["Qwen3-0.6B"]())


def parts_of(shapes: PolicyShapes, config: ExperimentConfig) -> dict[str, float]:
    return {part.name: part.num_bytes for part in learner_parts(shapes, config)}


def test_the_learners_parts_are_counted_by_hand() -> None:
    parts = parts_of(SMALL, long_config(learner={"gpus": 1}))
    assert parts["master weights"] == parts["gradients"] == 4 * NUM
    assert parts["AdamW moments"] == 8 * NUM
    assert parts["rounded weights"] == 2 * NUM
    assert parts["logits"] == 1024 * 151936 * 16
    assert parts["gradient of the head"] == 2 * 2 * 151936 * 1024
    assert "adapter" not in parts and "reference policy" not in parts and "folded weights" not in parts


def test_an_adapter_replaces_gradients_moments_and_a_second_reference() -> None:
    loss = {"reference_kl": 0.01}
    second = parts_of(SMALL, long_config(loss=loss))
    assert second["reference policy"] == 4 * NUM and second["rounded weights"] == 2 * 2 * NUM
    parts = parts_of(SMALL, long_config(loss=loss, learner={"adapter": {"rank": 16}}))
    assert parts["adapter"] == parts["gradients"] == 4 * 10_092_544
    assert parts["AdamW moments"] == 8 * 10_092_544
    assert "reference policy" not in parts and "gradient of the head" not in parts


def test_layers_that_are_computed_again_keep_their_inputs() -> None:
    """Of Qwen3-0.6B: 28 inputs of 1024 numbers, and one layer's activations; the last norm is in no layer."""
    whole = activation_bytes(SMALL, 2) - 8 * 1024
    assert activation_bytes(SMALL, 2, recomputed=True) == 28 * 2 * 1024 + whole / 28
    config = long_config(learner={"activation_checkpointing": True})
    assert parts_of(SMALL, config)["activations"] == 4096 * activation_bytes(SMALL, 2, recomputed=True)


def test_a_quantised_policy_also_has_folded_weights() -> None:
    shapes = shapes_of(PUBLISHED["Nemotron-3-Nano"]())
    experts, shared = 23 * 128 * 2 * 1856 * 2688, 23 * 2 * 3712 * 2688
    parts = parts_of(shapes, long_config(precision="nvfp4"))
    assert parts["folded weights"] == (experts + shared) * (4 + 4.5 / 8)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "precision", "learner_keys"),
    [
        ("qwen3", "float32", {}),
        ("qwen3", "float32", {"adapter": {"rank": 4}}),
        ("qwen3", "bf16", {"moments": "bfloat16"}),
        ("qwen3", "bf16", {"adapter": {"rank": 4}}),
        ("qwen3", "nvfp4", {}),
        ("qwen3", "nvfp4", {"adapter": {"rank": 4}}),
        ("qwen3_moe", "bf16", {"adapter": {"rank": 4, "experts": True}}),
    ],
)
def test_a_real_learner_has_parts_of_these_sizes(
    kind: str, precision: str, learner_keys: dict[str, Any], tmp_path: Path
) -> None:
    folder = write_policy(kind, tmp_path)
    policy = {"path": folder, "max_tokens": 256}
    config = make_config(precision=precision, policy=policy, learner={"warmup_steps": 0, **learner_keys})
    learner = Learner(folder, config)
    learner.update([make_sample([1, 2, 3, 4, 5], advantage=1.0)])
    parts = parts_of(policy_shapes(config), config)
    weights = sum(parameter.nbytes for parameter in learner.model.parameters())
    assert weights == sum(parts.get(name, 0) for name in ("master weights", "frozen weights", "adapter"))
    moments = [
        state for states in learner._optimizer.state.values() for state in (states["exp_avg"], states["exp_avg_sq"])
    ]
    assert sum(moment.nbytes for moment in moments) == parts["AdamW moments"]
    folded = [
        *learner.folded._folded.values(),
        *(part for q in learner.folded.quantised.values() for part in q.values()),
    ]
    assert sum(tensor.nbytes for tensor in folded) == pytest.approx(parts.get("folded weights", 0), rel=0.001)


def saved_bytes(config: PreTrainedConfig, dtype: torch.dtype) -> float:
    """Bytes that autograd saves of a token of this model's layers, weights and their rounded copies not counted."""
    model = AutoModelForCausalLM.from_config(config).eval()
    sizes = {frozenset(parameter.shape) for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}  # held, so that no two have one place

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if frozenset(tensor.shape) not in sizes:
            kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    ids_BT = torch.arange(300).reshape(2, 150)  # no weight has such a side
    mask_BT = torch.ones_like(ids_BT, dtype=torch.bool)
    no_logits_BT = torch.zeros_like(mask_BT)
    batch = Batch(ids_BT, mask_BT, no_logits_BT, {}, torch.zeros(2, 150), ("a", "a"), 1, 2)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        policy_logprobs(model, batch, dtype, 1.0, 64)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) / 300


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", ["qwen3", "llama", "hybrid"])
def test_activations_are_estimated_within_a_quarter(kind: str, dtype: torch.dtype) -> None:
    if kind == "hybrid":
        config: Any = hybrid_config(TinyHybrid(pattern="M*M-"))
    else:
        _, config_class, _, sizes = MODELS[kind]
        wide = {"hidden_size": 512, "intermediate_size": 1536, "num_attention_heads": 8, "head_dim": 64}
        config = config_class(**{**SIZES, **sizes, **wide})
    size = torch.finfo(dtype).bits // 8
    assert activation_bytes(shapes_of(config), size) == pytest.approx(saved_bytes(config, dtype), rel=0.25)


@pytest.mark.parametrize("precision", ["float32", "bf16", "nvfp4"])
@pytest.mark.parametrize("kind", ["hybrid", "qwen3", "qwen3_moe", "llama"])
def test_a_version_has_the_published_bytes_that_are_planned(kind: str, precision: str, tmp_path: Path) -> None:
    number_format = make_config(precision=precision).precision
    if kind == "hybrid":
        model = random_hybrid(hybrid_config(HYBRID), seed=0)
        config = make_config(precision=precision, policy={"build": {}}, sft={})
        shapes = policy_shapes(config)
    else:
        folder = write_policy(kind, tmp_path / "policy")
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        shapes = checkpoint_shapes(folder)
    quantised = FoldedWeights(model, number_format).quantised
    tensors = list(checkpoint_tensors(model, number_format.arithmetic, quantised))
    planned = published_bytes(shapes, number_format)
    assert planned == sum(tensor.nbytes for _, tensor in tensors)
    written = Path(str(write_weights(tensors, 0, tmp_path / "versions").place)).stat().st_size
    assert planned <= written < planned + 300 * len(tensors)  # padding, and an index of names


def test_a_sequence_of_the_cache_is_counted_by_hand() -> None:
    assert sequence_bytes(SMALL, long_config(), 16) == 2 * 28 * 2 * 8 * 128 * 2048
    assert sequence_bytes(SMALL, long_config(2049), 16) == 2 * 28 * 2 * 8 * 128 * (2048 + 16)
    assert sequence_bytes(SMALL, long_config(), 16, num_cards=2) == 28 * 2 * 8 * 128 * 2048
    # The hybrid: a state of 36,608 bytes needs 36 tokens of 1,024 bytes; 11 pages of 48 for 512 tokens, 2 for states.
    shapes = policy_shapes(make_config(policy={"build": {}}, sft={}))
    assert sequence_bytes(shapes, make_config(), 16) == (11 + 2) * 48 * 1024
    assert sequence_bytes(shapes, make_config(), 128) == (4 + 2) * 128 * 1024
    # Nano: a state of 2,134,016 bytes needs 2,084 tokens of 1,024; 6 attention layers, and 4 groups of 6 for 23 states.
    nano = shapes_of(PUBLISHED["Nemotron-3-Nano"]())
    assert sequence_bytes(nano, long_config(), 16) == (6 + 24) * 2096 * 1024


def test_each_card_caches_the_whole_of_latent_attention() -> None:
    """A layer of DeepSeek-V3 caches 512 + 64 numbers a token for all of its 128 heads."""
    tensors = {f"model.layers.{layer}.self_attn.kv_a_proj_with_mqa.weight": (576, 7168) for layer in range(2)}
    shapes = PolicyShapes.of(tensors, {"num_key_value_heads": 128, "num_hidden_layers": 2})
    for num_cards in (1, 8):
        assert sequence_bytes(shapes, long_config(), 16, num_cards) == 2 * 576 * 2 * 2048


@pytest.mark.slow
def test_an_engine_holds_as_many_sequences_as_planned(tmp_path: Path) -> None:
    from rl.engine.vllm_core import VllmCore

    build_policy(HYBRID, ["<|im_start|>user\n1+1=?<|im_end|>\n"] * 200, tmp_path, 0, NemotronFormat())
    config = make_config(policy={"path": tmp_path}, rollout={"max_in_flight": 4, "kv_cache_gib": 0.25})
    core = VllmCore(tmp_path, config)
    from vllm.v1.core.kv_cache_utils import get_max_concurrency_for_kv_cache_config as max_concurrency

    try:
        scheduler = core._llm.engine_core.engine_core.scheduler  # pyright: ignore[reportAttributeAccessIssue]
        held = max_concurrency(core._llm.vllm_config, scheduler.kv_cache_config)
        assert engine_memory(policy_shapes(config), config, None).num_sequences == int(held) == 341
    finally:
        core.shutdown()


def test_an_engine_has_what_its_share_of_the_card_leaves() -> None:
    config = long_config(rollout={"gpus_per_worker": 0.5, "gpu_memory_share": 0.4})
    engine = engine_memory(SMALL, config, 80e9)
    assert engine.parts[0].num_bytes == 2 * NUM
    assert engine.total_bytes == pytest.approx(0.4 * 80e9)
    assert engine.num_sequences == int(engine.cache_bytes / (2 * 57_344 * 2048)) == 123
    fixed = engine_memory(SMALL, long_config(rollout={"kv_cache_gib": 1}), None)
    assert (fixed.cache_bytes, fixed.num_sequences) == (GIB, 4)
