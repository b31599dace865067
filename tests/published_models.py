"""Published models as transformers configurations, and as models on the device `meta`, which takes no memory."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    NemotronHConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3MoeConfig,
)

from rl.config.experiment import ExperimentConfig
from rl.plan.shapes import PolicyShapes
from tests.makers import make_config

QWEN3: Mapping[str, Any] = {"vocab_size": 151936, "num_key_value_heads": 8, "head_dim": 128}
QWEN3_30B: Mapping[str, Any] = {
    "vocab_size": 151936,
    "hidden_size": 2048,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "tie_word_embeddings": False,
}
LLAMA_1B: Mapping[str, Any] = {
    "vocab_size": 128256,
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 8192,
    "tie_word_embeddings": True,
}
SMOLLM2_135M: Mapping[str, Any] = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "tie_word_embeddings": True,
}
NEMOTRON: Mapping[str, Any] = {
    "vocab_size": 131072,
    "num_attention_heads": 32,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "mamba_head_dim": 64,
    "ssm_state_size": 128,
    "n_groups": 8,
    "tie_word_embeddings": False,
}
NANO: Mapping[str, Any] = {
    "hybrid_override_pattern": "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME",
    "hidden_size": 2688,
    "mamba_num_heads": 64,
    "n_routed_experts": 128,
    "num_experts_per_tok": 6,
    "moe_intermediate_size": 1856,
    "moe_shared_expert_intermediate_size": 3712,
}
SUPER: Mapping[str, Any] = {
    "hybrid_override_pattern": "MEMEMEM*" + 2 * "EMEMEMEM*" + 4 * "EMEMEMEMEM*" + "EMEMEMEM*EMEMEMEME",
    "hidden_size": 4096,
    "mamba_num_heads": 128,
    "n_routed_experts": 512,
    "num_experts_per_tok": 22,
    "moe_latent_size": 1024,
    "moe_intermediate_size": 2688,
    "moe_shared_expert_intermediate_size": 5376,
}


def _qwen3(width: int, layers: int, heads: int, inner: int, tied: bool) -> Callable[[], PreTrainedConfig]:
    sizes: dict[str, Any] = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    return lambda: Qwen3Config(**QWEN3, **sizes, intermediate_size=inner, tie_word_embeddings=tied)


PUBLISHED: Mapping[str, Callable[[], PreTrainedConfig]] = {
    "Qwen3-0.6B": _qwen3(1024, 28, 16, 3072, True),
    "Qwen3-1.7B": _qwen3(2048, 28, 16, 6144, True),
    "Qwen3-4B": _qwen3(2560, 36, 32, 9728, True),
    "Qwen3-8B": _qwen3(4096, 36, 32, 12288, False),
    "Qwen3-14B": _qwen3(5120, 40, 40, 17408, False),
    "Qwen3-32B": _qwen3(5120, 64, 64, 25600, False),
    "Qwen3-30B-A3B": lambda: Qwen3MoeConfig(**QWEN3_30B),
    "Llama-3.2-1B": lambda: LlamaConfig(**LLAMA_1B),
    "SmolLM2-135M": lambda: LlamaConfig(**SMOLLM2_135M),
    "Nemotron-3-Nano": lambda: NemotronHConfig(**NEMOTRON, **NANO),
    "Nemotron-3-Super": lambda: NemotronHConfig(**NEMOTRON, **SUPER),
}


def on_meta(config: PreTrainedConfig) -> PreTrainedModel:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config).eval()


def shapes_of(config: PreTrainedConfig) -> PolicyShapes:
    tensors = {name: tuple(tensor.shape) for name, tensor in on_meta(config).state_dict().items()}
    return PolicyShapes.of(tensors, config.to_dict())


def long_config(max_tokens: int = 2048, /, **sections: Any) -> ExperimentConfig:
    """In bfloat16, with sequences of so many tokens."""
    return make_config(**{"precision": "bf16", "policy": {"path": "models/none", "max_tokens": max_tokens}, **sections})
