"""GSPO: the ratio and its clip are those of whole sequences. https://arxiv.org/abs/2507.18071.

Routers of mixture-of-experts policies send some tokens to other experts in the learner than in the engine; the
geometric mean over a sequence evens that out.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from rl.algorithms.advantages import group_advantages
from rl.algorithms.algorithm import Advantages, TokenView
from rl.algorithms.policy_gradient import PolicyGradient, Positive, Terms
from rl.data_types import Group

if TYPE_CHECKING:
    from torch import Tensor


class Gspo(PolicyGradient):
    """GSPO: clipped ratios of sequences, averaged over sequences."""

    algorithm: Literal["gspo"] = "gspo"
    """Name of the algorithm."""
    clip_low: Annotated[float, Field(gt=0, lt=1)] = 3e-4
    """Lower clip of a sequence's ratio between learner and engine, 1 - clip_low."""
    clip_high: Positive = 4e-4
    """Upper clip of a sequence's ratio, 1 + clip_high. Both are the paper's; a mismatch of the kernels of that size
    leaves nothing to train."""
    importance_weight_max: Positive | None = None
    """Upper bound on the importance weight of a token, or with `mask_sequence` of a sequence. For `truncate` it must be
    null: the ratio of a sequence has its clip."""

    @property
    def clips(self) -> tuple[float, float]:
        return self.clip_low, self.clip_high

    @property
    def clips_sequences(self) -> bool:
        return True

    def compare(self, groups: Sequence[Group]) -> list[Advantages]:
        return [group_advantages(group, "mean", True) for group in groups]

    def terms(self, logprobs_BT: "Tensor", weights_BT: "Tensor", advantages_BT: "Tensor", view: TokenView) -> Terms:
        from rl.algorithms.objectives import clipped_sequences

        return clipped_sequences(
            logprobs_BT,
            view.logprobs_BT.detach() - view.columns["logprob"],
            advantages_BT,
            view.loss_mask_BT,
            *self.clips,
        )

    def row_weights(self, view: TokenView) -> "Tensor":
        from rl.algorithms.objectives import per_sequence

        return per_sequence(view.loss_mask_BT, view.num_loss_tokens, view.num_loss_rows)
