"""MOPD: on-policy distillation from several teachers, each for the environments that name it.

A token's advantage is sg(log p_teacher(token) - log p(token)), so on average its gradient is that of the reverse KL
divergence from the teacher, over what the policy itself samples. p is the policy before the update, which makes one
step, so the proximal policy of the recipe is the learner's. Rewards and groups have no part in it. Tokens whose
importance weight is outside [0.5, 5] are left out (IcePop). Source: Nemotron 3 Ultra, arXiv:2606.15007, section MOPD;
the estimator without teachers by domain: https://arxiv.org/abs/2306.13649.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from rl.algorithms.algorithm import Advantages, Measure, TokenLoss, TokenView
from rl.algorithms.policy_gradient import Correction, PolicyGradient, Positive, Terms
from rl.data_types import Group
from rl.tokens import TEACHER

if TYPE_CHECKING:
    from torch import Tensor


class Mopd(PolicyGradient):
    """On-policy distillation: each token's advantage says how much more probable the teacher thinks it than the
    policy does."""

    algorithm: Literal["mopd"] = "mopd"
    """Name of the algorithm."""
    teacher: Annotated[str, Field(min_length=1)]
    """Name of the teacher, one of `teachers`."""
    correction: Correction = "mask"
    """What happens to importance weights between learner and engine outside the two bounds below: `truncate` clamps
    them, `mask` (IcePop) leaves the token out of the loss, `mask_sequence` leaves out sequences whose geometric mean is
    outside."""
    importance_weight_min: Annotated[float, Field(ge=0)] = 0.5
    """Lower bound on the importance weight."""
    importance_weight_max: Positive | None = 5.0
    """Upper bound on the importance weight; null is no bound."""
    advantage_max: Positive | None = 20.0
    """The advantages of tokens are clamped to plus or minus so many nats: a token that the teacher thinks impossible
    would otherwise outweigh a step."""

    @model_validator(mode="after")
    def _advantages_are_the_teachers(self) -> "Mopd":
        if self.overlong_filtering or self.malformed_advantage is not None:
            key = "overlong_filtering" if self.overlong_filtering else "malformed_advantage"
            raise ValueError(f"{key} edits advantages of rollouts, and those of mopd are tokens': remove it")
        return self

    @property
    def teacher_name(self) -> str | None:
        return self.teacher

    @property
    def needs_every_row(self) -> bool:
        return True

    def compare(self, groups: Sequence[Group]) -> list[Advantages]:
        return [tuple(0.0 if one.outcome.counts else None for one in group.rollouts) for group in groups]

    def terms(self, logprobs_BT: "Tensor", weights_BT: "Tensor", advantages_BT: "Tensor", view: TokenView) -> Terms:
        return super().terms(logprobs_BT, weights_BT, advantages_BT + self._gap(view), view)

    def token_loss(self, view: TokenView) -> TokenLoss:
        """As `PolicyGradient.token_loss`; the measure `teacher_kl` is the mean of log p - log p_teacher over loss
        tokens, in nats: an estimate of KL(policy || teacher), not clamped."""
        from rl.algorithms.corrections import check_finite, total

        check_finite(view.columns[TEACHER], view.loss_mask_BT, "teacher")
        loss = super().token_loss(view)
        gap_BT = (view.logprobs_BT.detach() - view.columns[TEACHER]) * view.loss_mask_BT
        return replace(loss, measures={**loss.measures, "teacher_kl": Measure(total(gap_BT), total(view.loss_mask_BT))})

    def _gap(self, view: TokenView) -> "Tensor":
        gap_BT = view.columns[TEACHER] - view.logprobs_BT.detach()
        return gap_BT if self.advantage_max is None else gap_BT.clamp(-self.advantage_max, self.advantage_max)
