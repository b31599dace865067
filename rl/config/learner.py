"""How does the learner update the policy: optimiser, micro-batches, adapter, routers?"""

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from rl.config.section import NonNegative, Positive, Section


class AdapterConfig(Section):
    """LoRA: the policy's weights are frozen, and small matrices beside the chosen ones are trained.

    The frozen base is held in the format of `precision`: float32, bfloat16, or bfloat16 values of NVFP4 codes.
    """

    rank: Positive = 16
    """Rank of the trained matrices."""
    alpha: Positive = 32
    """The trained product is multiplied by alpha / rank."""
    targets: Annotated[tuple[str, ...], Field(min_length=1)] = ("[qkvo]_proj", "(gate|up|down)_proj")
    """Regular expressions for the names of linear layers that get an adapter; each must match the last part of a name.
    Routed experts are not among them; see `experts`."""
    experts: bool = False
    """Give the matrices of each routed expert an adapter too, of the same rank."""

    @field_validator("targets")
    @classmethod
    def _are_expressions(cls, targets: tuple[str, ...]) -> tuple[str, ...]:
        for target in targets:
            try:
                re.compile(target)
            except re.error as error:
                raise ValueError(f"{target!r} is not a regular expression: {error}") from None
        return targets

    @property
    def pattern(self) -> str:
        """A regular expression for whole names of the layers that get an adapter."""
        return rf"(.*\.)?({'|'.join(f'(?:{target})' for target in self.targets)})"

    @property
    def scale(self) -> float:
        """What the trained product is multiplied by."""
        return self.alpha / self.rank


class LearnerAdapterConfig(AdapterConfig):
    """The adapter that the learner trains."""

    publish: Literal["adapter", "merged"] = "adapter"
    """What each version publishes: only the adapter's matrices, which engines merge into the base that they received
    once, or all weights, merged by the learner. Engines serve the same weights either way."""


Schedule = Literal["constant", "linear", "cosine"]


class LearnerConfig(Section):
    """The learner: the process that updates the policy."""

    num_ranks: Positive = 1
    """Processes that train the policy together. Each holds a slice of it (FSDP2), or with an adapter the whole frozen
    base, and computes its share of a step's micro-batches; the gradient is that of one process."""
    expert_parallel: Positive = 1
    """Number of ranks over which the experts of each layer are dealt; tokens travel to the ranks of their experts. It
    must divide `num_ranks` and the number of experts."""
    exchange: Literal["micro_batch", "step"] = "micro_batch"
    """When ranks exchange slices of weights and gradients: for each micro-batch, which takes the least memory, or once
    a step. Then each rank holds whole weights and float32 gradients until the end of its passes, which is faster for
    small policies and slow connections."""
    cpus: Annotated[float, Field(ge=0)] = 1.0
    """Ray CPUs that each rank reserves."""
    gpus: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Ray GPUs that each rank reserves: a rank computes on one device, or on a part of one."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    """Peak learning rate of AdamW."""
    warmup_steps: NonNegative = 5
    """Steps over which the learning rate rises linearly from 0."""
    schedule: Schedule = "constant"
    """Learning-rate schedule after the warmup; linear and cosine reach 0 at the last step."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay of AdamW."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """AdamW: decay rate of the first moment of the gradient."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """AdamW: decay rate of the second moment of the gradient."""
    moments: Literal["float32", "bfloat16"] = "float32"
    """Format of AdamW's two moments between updates; bfloat16, rounded at random without bias, saves 4 bytes a
    weight."""
    offload_moments: bool = False
    """Keep AdamW's moments in the CPU's memory: 8 bytes a weight less on the GPU, and slower updates."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients whose L2 norm is larger are scaled down to this norm."""
    tokens_per_micro_batch: Positive = 4096
    """Maximum tokens of one forward pass. Where prefixes are shared, each counts once; elsewhere padding counts too,
    and rows are sorted by length first. The supervised stage counts all tokens of rows; its padded rows (those of a
    policy that cannot share prefixes) are cut for little padding instead, without this bound."""
    share_prefixes: bool = True
    """Compute tokens with which several rows of a micro-batch begin once, prompts of a group above all, where the
    policy can: it is tried at the start. Same gradient, fewer tokens."""
    measured_share: Annotated[float, Field(ge=0, le=1)] = 0.125
    """Rows whose advantage is 0 have no gradient and are left out of the update, where the algorithm allows it; the
    loss is still divided by their tokens. This share of them goes through the forward pass all the same, so that
    mismatch, entropy and the load of experts are those of all rows."""
    logprob_chunk_tokens: Positive = 1024
    """Tokens whose logits over the vocabulary are in memory at the same time."""
    activation_checkpointing: bool = False
    """Keep only the input of each layer for the gradient, and compute the layer again: much less memory for long
    sequences, about a third more work. Routers choose experts once. Also in the supervised stage."""
    compile: bool = False
    """Compile the policy's layers of attention and dense MLPs (`torch.compile`): faster updates on a GPU, where the
    first one takes some seconds longer. Layers of experts and Mamba layers stay as they are. For one rank."""
    adapter: LearnerAdapterConfig | None = None
    """A low-rank adapter (LoRA) to train instead of all weights; `adapter: {}` uses its defaults."""
    freeze_router: bool = True
    """Do not train the weights of the MoE routers, whether they have expert biases or not. Expert biases still balance
    the load; routers without them keep that of the checkpoint."""
    expert_bias_rate: Annotated[float, Field(ge=0)] = 1e-3
    """Amount by which each update lowers the bias of overloaded experts and raises the bias of underloaded ones."""

    routing_replay: bool = False
    """For mixtures of experts: engines record which experts each token went to, and the learner sends it to the same
    ones, with weights of its own scores. Rounding then sends no token to other experts than those it was sampled with.
    Engines compute whole prompts then: what a prefix cache knows has no record. It takes one byte (two above 256
    experts) a token, mixture layer and chosen expert."""

    @model_validator(mode="after")
    def _experts_can_be_dealt(self) -> "LearnerConfig":
        if self.num_ranks % self.expert_parallel:
            raise ValueError(f"expert_parallel ({self.expert_parallel}) must divide num_ranks ({self.num_ranks})")
        if self.expert_parallel > 1 and self.adapter is not None:
            raise ValueError(
                "expert_parallel does not go with adapter: each rank then holds the whole frozen base; remove it"
            )
        return self

    @model_validator(mode="after")
    def _one_rank_compiles(self) -> "LearnerConfig":
        if self.compile and self.num_ranks > 1:
            raise ValueError(f"compile is for one rank, but num_ranks is {self.num_ranks}: remove one of them")
        return self

    @model_validator(mode="after")
    def _offload_needs_a_gpu(self) -> "LearnerConfig":
        if self.offload_moments and not self.gpus:
            raise ValueError("offload_moments saves memory of a GPU, but learner.gpus is 0: remove it, or set gpus")
        return self


def default_warmup(most: int, num_steps: int) -> int:
    """Steps of warmup of a stage of so many steps: a tenth of them, rounded up, and at most `most`."""
    return min(most, -(-num_steps // 10))
