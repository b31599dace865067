"""Which policies of random weights do benchmarks train and serve? A tiny one, and those of `benchmarks.gpu`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, NemotronHConfig, PretrainedConfig

from rl.chat.formats.nemotron import NemotronFormat
from rl.config.policy import TinyHybrid
from rl.policies import LAYER_TYPES, build_policy, hybrid_config

VOCAB = 32_768
LLAMA: Mapping[str, tuple[int, int, int]] = {"llama_0.5b": (24, 1280, 3584), "llama_1.5b": (28, 2048, 5632)}
"""Layers, width and inner width."""


def untrained(folder: Path, text: str = "<|im_start|>user\n1+1=?<|im_end|>\n", built: TinyHybrid | None = None) -> Path:
    """The folder, with a hybrid of random weights whose tokenizer knows this text."""
    build_policy(built or TinyHybrid(), [text] * 200, folder, 0, NemotronFormat())
    return folder


def random_policies(short: bool) -> dict[str, PretrainedConfig]:
    """Configurations by name. With `short` the policies are tiny."""
    if short:
        tiny = LlamaConfig(
            vocab_size=16_384, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
        )
        hybrid = hybrid_config(TinyHybrid(vocab_size=16_384))
        return {"llama": tiny, "hybrid": hybrid}
    made: dict[str, PretrainedConfig] = {
        name: LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=width,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=width // 128,
            num_key_value_heads=width // 256,
            head_dim=128,
            max_position_embeddings=8192,
            pad_token_id=0,
        )
        for name, (layers, width, inner) in LLAMA.items()
    }
    return made | {"hybrid_1b": large_hybrid()}


def large_hybrid() -> NemotronHConfig:
    """A billion weights: Mamba-2, experts and attention in the order of Nemotron 3, 0.3 billion of them active."""
    return NemotronHConfig(
        vocab_size=VOCAB,
        hidden_size=1024,
        layers_block_type=[LAYER_TYPES[letter] for letter in "MEMEM*EMEMEM*EMEMEM*E"],
        num_attention_heads=16,
        num_key_value_heads=2,
        head_dim=64,
        mamba_num_heads=32,
        mamba_head_dim=64,
        ssm_state_size=128,
        n_groups=8,
        chunk_size=128,
        n_routed_experts=64,
        num_experts_per_tok=6,
        moe_intermediate_size=640,
        moe_shared_expert_intermediate_size=1280,
        norm_topk_prob=True,
        tie_word_embeddings=False,
        max_position_embeddings=8192,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )


def saved(config: PretrainedConfig, folder: Path) -> Path:
    """The folder, with a random policy in bfloat16 if it is not there yet."""
    if not folder.exists():
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        model.save_pretrained(folder)
    return folder


def active_weights(model: Any) -> int:
    """Weights that compute for a token: all but embeddings, and of experts as many as a token chooses."""
    config = model.config
    share = getattr(config, "num_experts_per_tok", 1) / getattr(config, "n_routed_experts", 1)
    counts = {name: weight.numel() for name, weight in model.named_parameters() if "embed" not in name}
    return int(sum(num * (share if ".experts." in name else 1.0) for name, num in counts.items()))
