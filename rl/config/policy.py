"""Which policy is trained: a Hugging Face checkpoint or a tiny hybrid, and with which chat format?"""

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from rl.chat.formats import AUTO, CHAT_NAMES, new_format
from rl.config.section import NameOf, Positive, Section

ATTENTION_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Head sizes that vLLM's attention supports on CPUs."""


class TinyHybrid(Section):
    """A small NemotronH policy with random weights; its tokenizer is trained on gold conversations."""

    pattern: Annotated[str, Field(pattern=r"^[ME*-]+$")] = "M*ME"
    """Layers in order: M Mamba-2, E LatentMoE, * attention, - MLP."""
    hidden_size: Positive = 128
    """Width of the residual stream."""
    num_heads: Positive = 4
    """Attention heads; `hidden_size` must be a multiple of this number."""
    num_experts: Positive = 8
    """Routed experts per MoE layer."""
    num_experts_per_token: Positive = 2
    """Routed experts that each token is sent to."""
    latent_size: Positive = 64
    """Width of the latent space of the routed experts (LatentMoE)."""
    expert_size: Positive = 128
    """Hidden width of a routed expert."""
    shared_expert_size: Positive = 256
    """Hidden width of the shared expert."""
    vocab_size: Annotated[int, Field(ge=384)] = 768
    """Vocabulary size of the byte-level BPE tokenizer, special tokens included."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> "TinyHybrid":
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size ({self.hidden_size}) must be a multiple of num_heads ({self.num_heads})")
        head_size = self.hidden_size // self.num_heads
        if "*" in self.pattern and head_size not in ATTENTION_HEAD_SIZES:
            raise ValueError(
                f"attention heads would be {head_size} wide (hidden_size / num_heads); vLLM on CPUs supports"
                f" {', '.join(map(str, ATTENTION_HEAD_SIZES))}"
            )
        if self.num_experts_per_token > self.num_experts:
            raise ValueError(
                f"num_experts_per_token ({self.num_experts_per_token}) exceeds num_experts ({self.num_experts})"
            )
        return self


class PolicyConfig(Section):
    """The policy to train: a Hugging Face checkpoint, or a tiny hybrid that the run builds."""

    path: Path | None = None
    """Folder of a Hugging Face checkpoint, or the id of a model on the hub: its newest snapshot in the local cache, or
    downloaded by `rl train`; `rl plan` needs its config.json only. Set either this or `build`."""
    build: TinyHybrid | None = None
    """Sizes of a tiny hybrid to build; `build: {}` uses the defaults."""
    chat: Annotated[str, NameOf(CHAT_NAMES)] = AUTO
    """Chat format: `template` for the checkpoint's own chat template, `nemotron` for a policy that is built and for
    checkpoints without a template, or `auto` for the one of them that fits."""
    max_tokens: Positive = 512
    """Maximum sequence length: prompts, replies and tool results of one rollout together."""

    @model_validator(mode="after")
    def _one_source(self) -> "PolicyConfig":
        if self.path is None and self.build is None:
            raise ValueError(
                "neither path (a Hugging Face folder) nor build (a policy to build) is given; `build: {}` is enough"
            )
        if self.path is not None and self.build is not None:
            raise ValueError("both path and build are given; keep one and set the other to null")
        return self

    @model_validator(mode="after")
    def _chat_can_be_built(self) -> "PolicyConfig":
        if self.build is not None:
            try:
                new_format(self.chat)
            except ValueError as error:
                raise ValueError(f"build and chat: {self.chat} do not go together: {error}") from None
        return self
