"""What flows through the loop: one frozen type a stage.

Axes in names: P prompts a step, G rollouts a group, B sequences a micro-batch, T tokens, V vocabulary.
Column t of everything that has a T axis describes token t itself; the shift by one between logits and tokens happens in
one function, `rl.learner.logprobs.token_logprobs`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal

from envs.messages import Message

if TYPE_CHECKING:
    import torch

Budget = Literal["off", "unlimited"] | int
"""How much the policy may think in each reply: not at all, as much as the reply's length allows, or so many tokens."""
Finish = Literal["stop", "length", "abort"]


class Outcome(StrEnum):
    """How a rollout ended. The first four are the policy's doing and count; the others are retried, then masked."""

    OK = "ok"
    TRUNCATED = "truncated"
    BUDGET_HIT = "budget_hit"
    INVALID_ACTION = "invalid_action"
    ENV_ERROR = "env_error"
    ENV_TIMEOUT = "env_timeout"
    INFRA_ERROR = "infra_error"
    STALE = "stale"

    @property
    def counts(self) -> bool:
        """Whether rollouts with this outcome enter group statistics and the loss."""
        return self in (Outcome.OK, Outcome.TRUNCATED, Outcome.BUDGET_HIT, Outcome.INVALID_ACTION)


@dataclass(frozen=True, slots=True)
class Task:
    """What is to be played. `ordinal` is its place in the stream of training tasks, or in the evaluation set."""

    ordinal: int
    env_id: str
    seed: int
    split: Literal["train", "heldout"]
    budget: Budget
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Turn:
    """One reply of the policy as the engine sampled it. All but `prompt_ids` have the length of `reply_ids`."""

    prompt_ids: tuple[int, ...]
    reply_ids: tuple[int, ...]
    reply_logprobs: tuple[float, ...]
    """Nats, of the distribution that was sampled from (after temperature)."""
    forced_mask: tuple[bool, ...]
    """True where the token was forced by the budget and not sampled; such tokens never enter the loss."""
    policy_versions: tuple[int, ...]
    """The policy version that sampled each token."""
    finish: Finish


@dataclass(frozen=True, slots=True)
class Rollout:
    """One episode. `messages` are for rewards and people, never for training."""

    task: Task
    group_id: str
    member: int
    turns: tuple[Turn, ...]
    messages: tuple[Message, ...]
    reward: float | None
    """None exactly when the outcome does not count."""
    reward_parts: Mapping[str, float]
    outcome: Outcome
    error: str
    """What went wrong, for outcomes that do not count; else empty."""
    num_malformed_calls: int
    budget_violation: str
    """What the engine did that the task's budget does not allow; empty when it obeyed."""
    num_attempts: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Group:
    """G tries at one task."""

    group_id: str
    task: Task
    rollouts: tuple[Rollout, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """One training row; every sequence has length T."""

    env_id: str
    token_ids: tuple[int, ...]
    loss_mask: tuple[bool, ...]
    """True where the policy sampled the token."""
    sampler_logprobs: tuple[float, ...]
    """Nats; 0 where `loss_mask` is False."""
    policy_versions: tuple[int, ...]
    """The version that sampled each token; -1 where `loss_mask` is False."""
    advantage: float


@dataclass(frozen=True, slots=True)
class Batch:
    """One forward pass. Rows are padded on the right; padding is False in both masks."""

    token_ids_BT: "torch.Tensor"
    """int64"""
    attention_mask_BT: "torch.Tensor"
    """bool"""
    loss_mask_BT: "torch.Tensor"
    """bool"""
    sampler_logprobs_BT: "torch.Tensor"
    """float32, nats"""
    advantages_BT: "torch.Tensor"
    """float32"""
    num_loss_tokens: int
    """Loss tokens of the whole step (all micro-batches, all learners): the denominator of the loss."""


@dataclass(frozen=True, slots=True)
class Update:
    """What one optimiser step did. Mismatch is between the learner's and the sampler's logprobs of the same tokens."""

    policy_version: int
    """The version after the step."""
    loss: float
    grad_norm: float
    """L2 norm over all trained parameters before clipping."""
    learning_rate: float
    mismatch: float
    """mean exp|delta logp| over loss tokens; 1.0 is perfect agreement."""
    mismatch_kl: float
    """k3 estimate of KL(sampler || learner) a token, nats."""
    masked_fraction: float
    """Share of sequences masked because their own mismatch was above the threshold."""
    truncated_weight_fraction: float
    """Share of loss tokens whose importance weight was truncated."""
    clip_fraction: float
    """Share of loss tokens where the clipped objective was active; 0 where clipping is off."""
    entropy: float
    """Mean over loss tokens, nats."""
    reference_kl: float
    """k3 estimate of KL(policy || reference) a token, nats; 0 without a reference."""
    codes_changed: float
    """Share of the quantised weights' codes that the step changed; 0 where nothing is quantised."""
    num_loss_tokens: int
    num_tokens: int
    """Tokens that went through the model, prompts included, padding not."""
    seconds: float
