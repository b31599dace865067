"""What must an RL algorithm implement? The advantages of rollouts, and the loss of their tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from rl.config.section import Section
from rl.data_types import Group, Rollout

if TYPE_CHECKING:
    from torch import Tensor

Advantages = tuple[float | None, ...]
"""The advantages of one group, one per rollout, in order; None for rollouts that do not count."""


@dataclass(frozen=True, slots=True)
class TokenView:
    """The rows of a micro-batch that one algorithm trains."""

    logprobs_BT: "Tensor"
    """The learner's logprobs in nats, with gradient; 0 outside the mask."""
    loss_mask_BT: "Tensor"
    """bool; True if the policy sampled the token."""
    advantages_BT: "Tensor"
    columns: Mapping[str, "Tensor"]
    """The other token columns by name, [B, T, ...]; `logprob` is the engine's. 0 outside the mask."""
    reference_logprobs_BT: "Tensor | None"
    """Logprobs of the policy that training started from; None unless `needs_reference`."""
    entropy_BT: "Tensor"
    """Entropies of the learner's distributions in nats, with gradient; 0 outside the mask."""
    num_loss_tokens: int
    """Of the whole step: what the learner divides the loss by."""
    num_loss_rows: int
    """Rows of the whole step."""


class Measure(NamedTuple):
    """A mean as total and weight, so that micro-batches and learners can be summed before the division."""

    total: "Tensor"
    weight: "Tensor"


@dataclass(frozen=True, slots=True)
class TokenLoss:
    """The loss terms and measures that an algorithm computes for a view."""

    loss_BT: "Tensor"
    """Loss term of each token, with gradient; 0 for excluded tokens. The learner sums the terms over the step and
    divides by the step's number of loss tokens, which includes excluded tokens."""
    measures: Mapping[str, Measure] = field(default_factory=dict)
    """Metrics of the step by name; tracked as `update/NAME`."""


class Algorithm(Section):
    """An RL algorithm: a configuration section with code. It is stateless: the learner may call it on any rows, in any
    order.

    To add an algorithm, write a subclass in its own file with its keys, one of which is
    `algorithm: Literal["name"] = "name"`, and add it to `rl.algorithms.ALGORITHMS`. Import torch only inside methods,
    because configurations are read without torch.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    """Columns of `rl.tokens.Tokens` that the loss reads besides `logprob` and `version`."""

    @property
    def teacher_name(self) -> str | None:
        """The teacher (`teachers`) whose logprobs the loss reads, in the column `rl.tokens.TEACHER`; None reads
        none."""
        return None

    @property
    def needs_reference(self) -> bool:
        """Whether the loss reads logprobs of the reference, the policy that training started from."""
        return False

    @property
    def needs_every_row(self) -> bool:
        """Whether a row whose advantage is 0 has a gradient all the same. If not, the learner leaves such rows out."""
        return True

    def advantages(self, groups: Sequence[Group]) -> list[Advantages]:
        """The advantages of all groups of a step, one entry per group.

        Raises `RewardError` (`rl.algorithms.advantages`) if a rollout that counts has no finite reward.
        """
        raise NotImplementedError

    def turn_advantages(self, rollout: Rollout, advantage: float) -> Sequence[float]:
        """The advantage of each turn's tokens, given that of the rollout."""
        return [advantage] * len(rollout.turns)

    def token_loss(self, view: TokenView) -> TokenLoss:
        """The loss of each token of the view. Raises `NonFiniteError` (`rl.algorithms.corrections`)."""
        raise NotImplementedError
