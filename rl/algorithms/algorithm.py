"""What is an algorithm of reinforcement learning here? Advantages of rollouts, and a loss of their tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from rl.config.section import Section
from rl.data_types import Group

if TYPE_CHECKING:
    from torch import Tensor

Advantages = tuple[float | None, ...]
"""One a rollout of a group, in order; None for rollouts that do not count."""


@dataclass(frozen=True, slots=True)
class TokenView:
    """The rows of a micro-batch that one algorithm trains."""

    logprobs_BT: "Tensor"
    """Of the learner, nats, with gradient; 0 outside the mask."""
    loss_mask_BT: "Tensor"
    """bool; True where the policy sampled the token."""
    advantages_BT: "Tensor"
    columns: Mapping[str, "Tensor"]
    """What is known of each token besides, [B, T, ...]; `logprob` is that of the engine. 0 outside the mask."""
    reference_logprobs_BT: "Tensor | None"
    """Of the policy that training started from, where `needs_reference`."""


class Measure(NamedTuple):
    """A mean that is still a sum, so that micro-batches and learners can be added up."""

    total: "Tensor"
    weight: "Tensor"


@dataclass(frozen=True, slots=True)
class TokenLoss:
    """What an algorithm makes of a view."""

    loss_BT: "Tensor"
    """Each token's term, with gradient; 0 where it is left out. The learner adds them up over the step and divides by
    the step's loss tokens, those that were left out included."""
    measures: Mapping[str, Measure] = field(default_factory=dict)
    """Metrics of the step, by name; tracked as `update/NAME`."""


class Algorithm(Section):
    """A section of the configuration that also computes. Stateless: the learner may call it on any rows, in any order.

    To add one: a subclass in a file of its own, with its keys (`algorithm: Literal["name"] = "name"` among them), and a
    line of `rl.algorithms.ALGORITHMS`. Import torch inside of methods only: a configuration is read without it.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    """Columns of `rl.data_types.Tokens` that the loss reads, besides `logprob` and `version`."""

    @property
    def needs_reference(self) -> bool:
        """Whether the loss reads logprobs of the policy that training started from."""
        return False

    def advantages(self, groups: Sequence[Group]) -> list[Advantages]:
        """How much better each rollout was than others. One entry a group, all groups of the step at once.

        Raises `RewardError` (`rl.algorithms.advantages`) where a rollout that counts has no finite reward.
        """
        raise NotImplementedError

    def token_loss(self, view: TokenView) -> TokenLoss:
        """The loss of each token of the view. Raises `NonFiniteError` (`rl.algorithms.corrections`)."""
        raise NotImplementedError
