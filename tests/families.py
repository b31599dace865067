"""Tiny random policies of the families that people train, each with the family's published chat template."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
import trl
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    NemotronHConfig,
    NemotronHForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
CHATML = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
CALLS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
THINK = ("<think>", "</think>")
LLAMA = ("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|python_tag|>", "<|eom_id|>")
GEMMA = ("<bos>", "<end_of_turn>", "<start_of_turn>")
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen's tokenizers split text."""
VOCAB_SIZE = 640


class Family(NamedTuple):
    tokens: tuple[str, ...]
    """Control tokens: the first begins a text, the second ends a turn."""
    tools: bool = False
    thinking: bool = False
    whole: str = ""
    """The template that renders whole conversations; its own if empty."""
    only_one_call: bool = False


FAMILIES = {
    "qwen2_5": Family((*CHATML, *CALLS), tools=True),
    "qwen3_instruct_2507": Family((*CHATML, *CALLS), tools=True),
    "qwen3": Family((*CHATML, *CALLS, *THINK), True, True, "qwen3_training"),
    "qwen3_5_think": Family((*CHATML, *CALLS, *THINK), True, True, "qwen3_5_think_training"),
    "nemotron_3_nano": Family((*CHATML, *CALLS, *THINK), True, True, "nemotron_3_nano_training"),
    "nemotron_3_super": Family((*CHATML, *CALLS, *THINK), True, True, "nemotron_3_super_training"),
    "nemotron_3_ultra": Family((*CHATML, *CALLS, *THINK), True, True, "nemotron_3_ultra_training"),
    "llama3": Family(LLAMA),
    "llama3_1": Family(LLAMA, tools=True, only_one_call=True),
    "llama3_2": Family(LLAMA, tools=True, only_one_call=True),
    "gemma": Family(GEMMA),
    "gemma3": Family(GEMMA),
    "phi3": Family(("<|system|>", "<|end|>", "<|user|>", "<|assistant|>", "<|endoftext|>")),
}


def template_of(name: str) -> str:
    return (TEMPLATES / f"{name}.jinja").read_text()


def tokenizer_of(name: str, texts: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """A small byte-level BPE with the family's control tokens and template, trained on the template and the texts."""
    tokens = FAMILIES[name].tokens
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([template_of(name), *texts], trainer)
    loaded = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=tokens[0], eos_token=tokens[1])
    loaded.chat_template = template_of(name)
    return loaded


SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 128,
    "max_position_embeddings": 2048,
}
MODELS: dict[str, tuple[str, type[PreTrainedConfig], type[PreTrainedModel], dict[str, object]]] = {
    "qwen3": ("qwen3", Qwen3Config, Qwen3ForCausalLM, {"head_dim": 32, "tie_word_embeddings": True}),
    "qwen3_moe": (
        "qwen3",
        Qwen3MoeConfig,
        Qwen3MoeForCausalLM,
        {"head_dim": 32, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64},
    ),
    "llama": ("llama3_2", LlamaConfig, LlamaForCausalLM, {"tie_word_embeddings": False}),
    "nemotron": (
        "nemotron_3_nano",
        NemotronHConfig,
        NemotronHForCausalLM,
        {
            "layers_block_type": ["linear_attention", "moe", "full_attention", "moe"],
            "head_dim": 32,
            "ssm_state_size": 16,
            "mamba_num_heads": 4,
            "mamba_head_dim": 32,
            "n_groups": 1,
            "chunk_size": 16,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_latent_size": 32,
            "moe_intermediate_size": 64,
            "moe_shared_expert_intermediate_size": 64,
        },
    ),
}
"""The family of the template, and the model, by kind."""


def write_policy(kind: str, folder: Path, texts: tuple[str, ...] = ()) -> Path:
    """A Hugging Face checkpoint of a random policy of this kind; `texts` are what its tokenizer is trained on too."""
    family, config_class, model_class, sizes = MODELS[kind]
    tokenizer = tokenizer_of(family, texts)
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    config = config_class(**{**SIZES, **sizes, **ends})
    torch.manual_seed(0)
    model_class(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
