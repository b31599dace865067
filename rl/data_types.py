"""Which data types flow through the loop? One frozen dataclass per stage.

Axes in names: P prompts per step, G rollouts per group, B sequences per micro-batch, T tokens, V vocabulary. Column t
of every array with a T axis describes token t itself. The shift by one between logits and tokens happens in one
function, `rl.learner.logprobs.token_logprobs`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, get_args

from envs.messages import Message
from rl.tokens import Tokens

if TYPE_CHECKING:
    import torch

    from rl.prefix_tree import PrefixTree

Effort = Literal["efficient", "minimal", "low", "medium", "high", "xhigh", "max"]
"""Reasoning effort: Nemotron 3's word for a low one, and those of OpenAI's `reasoning_effort`."""
EFFORTS: tuple[Effort, ...] = get_args(Effort)
Budget = Literal["off", "unlimited"] | Effort | int
"""Thinking budget of each reply: no thinking, as much as the reply's length allows, a number of tokens, or an effort,
which is told to the policy and not enforced."""
Finish = Literal["stop", "length", "abort"]


class Outcome(StrEnum):
    """How a rollout ended. The policy caused the first four, which count; the others are retried, then masked."""

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
    """A task to play. `ordinal` is its position in the stream of training tasks, or in the evaluation set."""

    ordinal: int
    env_id: str
    seed: int
    split: Literal["train", "heldout"]
    budget: Budget
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Turn:
    """One reply of the policy, and the prompt tokens between the previous reply and this one."""

    prompt: Tokens
    """Prompt tokens that are new since the last reply; the whole prompt if `is_start`."""
    reply: Tokens
    finish: Finish
    is_start: bool
    """Whether this turn begins a new context instead of continuing that of the turn before."""

    @property
    def num_forced(self) -> int:
        """Number of reply tokens that the thinking budget forced."""
        return len(self.reply) - int(self.reply.sampled.sum())


def first_reply(messages: Sequence[Message], num_turns: int) -> int:
    """Place of the first of the last `num_turns` replies; behind all messages if there are not so many."""
    places = [place for place, message in enumerate(messages) if message.role == "assistant"]
    return places[-num_turns] if 0 < num_turns <= len(places) else len(messages)


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
    """The error of an outcome that does not count; otherwise empty."""
    malformed_calls: Mapping[str, int]
    """Number of replies with a tool call that could not be read, by the kind of fault (`rl.chat.calls.style.Kind`)."""
    budget_violation: str
    """How the engine violated the task's budget; empty if it did not."""
    num_attempts: int
    seconds: float

    @property
    def first_reply(self) -> int:
        """Place of the policy's first reply in `messages`; the opening, before it, may have replies too."""
        return first_reply(self.messages, len(self.turns))

    @property
    def replies(self) -> tuple[Message, ...]:
        """The messages that the policy wrote, one a turn."""
        return tuple(message for message in self.messages[self.first_reply :] if message.role == "assistant")

    @property
    def num_reply_tokens(self) -> int:
        """Tokens of all replies, forced ones included."""
        return sum(len(turn.reply) for turn in self.turns)


@dataclass(frozen=True, slots=True)
class Group:
    """G rollouts of one task."""

    group_id: str
    task: Task
    rollouts: tuple[Rollout, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """One training row: the tokens of one context, with the advantage of their rollout."""

    env_id: str
    tokens: Tokens
    advantage: float


@dataclass(frozen=True, slots=True)
class Batch:
    """One forward pass. Rows are padded on the right; padding is False in both masks and 0 in every column."""

    token_ids_BT: "torch.Tensor"
    """int64"""
    attention_mask_BT: "torch.Tensor"
    """bool"""
    loss_mask_BT: "torch.Tensor"
    """bool"""
    columns: Mapping[str, "torch.Tensor"]
    """[B, T, ...] by name, in the types of `Tokens.columns`."""
    advantages_BT: "torch.Tensor"
    """float32"""
    env_ids: tuple[str, ...]
    """The environment of each row; it determines the row's algorithm. Empty for a batch of padding, which is not
    trained on (`rl.learner.batching`)."""
    num_loss_tokens: int
    """Number of loss tokens in the whole step (all micro-batches, all learners): the denominator of the loss."""
    num_loss_rows: int
    """Number of rows in the whole step, for algorithms that average over rows."""
    tree: "PrefixTree | None" = None
    """The rows' tokens with each prefix once, if the policy computes them so."""


@dataclass(frozen=True, slots=True)
class Update:
    """The result of one optimiser step.

    Mismatch compares the logprobs of learner and engine for the same tokens. Fresh tokens were sampled by the trained
    version; their mismatch shows whether learner and engine compute the same policy. The mismatch of stale tokens also
    contains how far the policy has moved since they were sampled.
    """

    policy_version: int
    """The version after the step."""
    loss: float
    grad_norm: float
    """L2 norm over all trained parameters before clipping."""
    learning_rate: float
    mismatch: float | None
    """Mean exp|delta logp| over fresh loss tokens; 1.0 is perfect agreement. None without such tokens."""
    mismatch_stale: float | None
    """The same over stale loss tokens."""
    mismatch_kl: float
    """k3 estimate of KL(engine || learner) per loss token, nats."""
    entropy: float
    """Mean over loss tokens, nats."""
    codes_changed: float
    """Share of the quantised weights' codes that the step changed; 0 if nothing is quantised."""
    num_loss_tokens: int
    num_row_tokens: int
    """Tokens of all rows, prompts included."""
    num_tokens: int
    """Tokens that went through the model, without padding: not those of rows that were left out (`rl.learner.rows`),
    and what rows share once, if it is computed once (`rl.prefix_tree`)."""
    seconds: float
    measures: Mapping[str, float] = field(default_factory=dict)
    """Measures of the algorithms by name; see their `token_loss`."""
