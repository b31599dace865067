"""What do the algorithms share that compare a rollout with others and weight its tokens by that?

Corrections of off-policy tokens, the penalty for leaving the reference, an entropy bonus, and edits of advantages. Each
algorithm adds how advantages come from rewards, and the objective of a token.

Sources: token-level mean over the step, DAPO, https://arxiv.org/abs/2503.14476; corrections in
`rl.algorithms.corrections`; KL estimates in `rl.algorithms.kl`; clipped advantages and overlong filtering as in NeMo RL
(NVIDIA-NeMo/RL, algorithms/grpo.py).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from pydantic import Field, model_validator

from rl.algorithms.algorithm import Advantages, Algorithm, Measure, TokenLoss, TokenView
from rl.algorithms.kl import ESTIMATORS, Estimator, still_to_come
from rl.algorithms.malformed import is_malformed
from rl.data_types import Group, Rollout

if TYPE_CHECKING:
    from torch import Tensor

Correction = Literal["truncate", "mask", "mask_sequence"]
Positive = Annotated[float, Field(gt=0)]


class Terms(NamedTuple):
    """The objective of each token, as a loss."""

    loss_BT: "Tensor"
    """With gradient; without penalties."""
    clipped_BT: "Tensor | None" = None
    """bool; True for tokens without gradient, whose clipped term is the smaller one. None if nothing is clipped."""


class PolicyGradient(Algorithm):
    """An algorithm whose loss is a sum over tokens of advantage times ratio, with corrections and penalties."""

    correction: Correction = "truncate"
    """What happens to importance weights between learner and engine outside the two bounds below: `truncate` clamps
    them, `mask` (IcePop) leaves the token out of the loss, `mask_sequence` leaves out sequences whose geometric mean is
    outside."""
    importance_weight_min: Annotated[float, Field(ge=0)] = 0.0
    """Lower bound on the importance weight. Objectives with clips have no weights to clamp: there it must be 0 with
    `truncate`."""
    importance_weight_max: Positive | None = 2.0
    """Upper bound on the importance weight; null is no bound."""
    sequence_mismatch_max: Annotated[float, Field(gt=1)] = 2.0
    """Sequences whose mean exp|delta logp| between learner and engine is above this are excluded from the loss. In an
    asynchronous run the difference includes that of the policy versions, so this bounds staleness too."""
    reference_kl: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the KL penalty towards the policy that training started from; 0 loads no reference policy."""
    reference_kl_estimator: Estimator = "k3"
    """Estimate of the divergence: k1 is -log r, k2 is (log r)^2 / 2, k3 is r - 1 - log r."""
    reference_kl_in: Literal["loss", "reward"] = "loss"
    """Where the penalty is: a term of the loss, or subtracted from each token's advantage, with that of all tokens
    after it."""
    entropy_bonus: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the entropy of the policy's distributions, in nats, in the objective."""
    advantage_max: Positive | None = None
    """Advantages are clamped to plus or minus this."""
    malformed_advantage: float | None = None
    """Advantage of the tokens of a reply with a tool call that stayed text, or with think tags where none belong,
    instead of its rollout's; null makes no difference. Calls are known by their tags, and replies that were cut at a
    limit of tokens are left out. Super's recipe has -5."""
    overlong_filtering: bool = False
    """Rollouts whose last reply was cut at a limit of tokens get advantage 0. They count in the statistics of their
    group, and their tokens in the denominator of the loss."""

    @model_validator(mode="after")
    def _penalties_fit(self) -> "PolicyGradient":
        if self.reference_kl > 0 and self.reference_kl_in == "loss" and self.reference_kl_estimator == "k1":
            raise ValueError(
                "reference_kl_estimator k1 has a gradient of 0 on average as a term of the loss: take k2 or k3, or set"
                " reference_kl_in: reward"
            )
        if self.importance_weight_max is not None and self.importance_weight_min >= self.importance_weight_max:
            raise ValueError(
                f"importance_weight_min ({self.importance_weight_min:g}) must be below importance_weight_max"
                f" ({self.importance_weight_max:g})"
            )
        return self

    @model_validator(mode="after")
    def _bounds_act(self) -> "PolicyGradient":
        low, high, truncates = self.importance_weight_min, self.importance_weight_max, self.correction == "truncate"
        if self.clips is None or self.correction == "mask_sequence":
            return self
        if truncates and low > 0:
            raise ValueError(
                f"importance_weight_min ({low:g}) does nothing: an objective with clips has no importance weights for"
                " correction truncate; set importance_weight_min: 0, which also replaces that of a preset, or choose"
                " correction: mask"
            )
        if self.clips_sequences:
            if truncates and high is not None:
                raise ValueError(
                    f"importance_weight_max ({high:g}) does nothing: the ratio of a sequence has clip_high, and there"
                    " are no importance weights of tokens for correction truncate; set importance_weight_max: null, or"
                    " choose correction: mask"
                )
            return self
        highest = 1 + self.clips[1]
        if high is not None and high < highest - 1e-9:  # 1.53 is less than 1 + 0.53 in floating point
            why = "the clip lets the dual clip act only above it, on tokens with a negative advantage"
            if not truncates:
                why = "tokens above the bound are left out, so clip_high would do nothing"
            raise ValueError(
                f"importance_weight_max ({high:g}) is below 1 + clip_high ({highest:g}): {why}; raise it, set it to"
                " null, or lower clip_high"
            )
        return self

    @property
    def clips(self) -> tuple[float, float] | None:
        """`clip_low` and `clip_high` of an objective like PPO's, whose ratio is between learner and engine, so that it
        has no importance weights besides; None if it is not clipped."""
        return None

    @property
    def clips_sequences(self) -> bool:
        """Whether the ratio that is clipped is that of a sequence. Then there is no dual clip."""
        return False

    @property
    def needs_reference(self) -> bool:
        return self.reference_kl > 0

    @property
    def needs_every_row(self) -> bool:
        return self.reference_kl > 0 or self.entropy_bonus > 0  # all else is a multiple of the advantage

    def advantages(self, groups: Sequence[Group]) -> list[Advantages]:
        return [self._edited(group, own) for group, own in zip(groups, self.compare(groups), strict=True)]

    def turn_advantages(self, rollout: Rollout, advantage: float) -> Sequence[float]:
        if self.malformed_advantage is None or len(rollout.replies) != len(rollout.turns):
            return super().turn_advantages(rollout, advantage)
        return [
            self.malformed_advantage if turn.finish != "length" and is_malformed(reply) else advantage
            for turn, reply in zip(rollout.turns, rollout.replies, strict=True)
        ]

    def compare(self, groups: Sequence[Group]) -> list[Advantages]:
        """As `advantages`, before they are clamped and filtered."""
        raise NotImplementedError

    def terms(self, logprobs_BT: "Tensor", weights_BT: "Tensor", advantages_BT: "Tensor", view: TokenView) -> Terms:
        """The objective of each token, by default the surrogate with importance weights, or with `clips` PPO's with the
        engine's policy as the old one and `importance_weight_max` as the bound of dual clipping. All are [B, T];
        `logprobs_BT` are the learner's, 0 where a token is excluded, `weights_BT` the importance weights, without
        gradient.
        """
        from rl.algorithms.objectives import clipped, surrogate

        if self.clips is None:
            return surrogate(logprobs_BT, weights_BT, advantages_BT)
        bound = self.importance_weight_max if self.correction == "truncate" else None
        return clipped(logprobs_BT, view.columns["logprob"], advantages_BT, *self.clips, bound)

    def row_weights(self, view: TokenView) -> "Tensor | float":
        """Factors of the rows' terms, [B, 1]; 1 is the mean over all tokens of the step."""
        return 1.0

    def token_loss(self, view: TokenView) -> TokenLoss:
        """The loss of each token: -objective + reference_kl * KL - entropy_bonus * entropy.

        Excluded sequences and tokens (`sequence_mismatch_max`, `correction`) leave the sum but not its denominator. The
        denominator is thus known before the first forward pass, and a token's weight does not depend on other
        sequences. NeMo RL divides by the tokens that are kept, so there every exclusion raises the weight of the rest.

        Measures over loss tokens: `truncated_weight_fraction` (the importance weight was outside the bounds),
        `clip_fraction` (the clipped objective was active), `reference_kl` (KL(policy || reference) by the estimator,
        nats). Measure over sequences: `masked_fraction` (no token was kept).
        """
        import torch

        from rl.algorithms.corrections import keep_mask, total, weights_within

        mask_BT, all_logprobs_BT = view.loss_mask_BT, view.logprobs_BT.detach()
        delta_BT = torch.where(mask_BT, all_logprobs_BT - view.columns["logprob"], 0.0)
        close_BT = keep_mask(delta_BT, mask_BT, self.sequence_mismatch_max)
        bounds = self.importance_weight_min, self.importance_weight_max
        weights_BT, outside_BT = weights_within(delta_BT, mask_BT, self.correction, *bounds)
        kept_BT = close_BT if self.correction == "truncate" else close_BT & ~outside_BT
        # Cut the gradient of excluded tokens before any exp of theirs: if it overflows, inf times 0 would be NaN.
        logprobs_BT = torch.where(kept_BT, view.logprobs_BT, 0.0)
        penalties_BT, kl_BT = self._penalties(logprobs_BT, view)
        advantages_BT = view.advantages_BT
        if self.reference_kl_in == "reward":
            advantages_BT = advantages_BT - self.reference_kl * still_to_come(kl_BT)
        terms = self.terms(logprobs_BT, weights_BT, advantages_BT, view)
        loss_BT = (terms.loss_BT + penalties_BT) * self.row_weights(view)
        has_loss_B, num_tokens = mask_BT.any(dim=-1), total(mask_BT)
        num_clipped = (
            total(terms.clipped_BT & kept_BT) if terms.clipped_BT is not None else torch.zeros_like(num_tokens)
        )
        measures = {
            "masked_fraction": Measure(total(has_loss_B & ~kept_BT.any(dim=-1)), total(has_loss_B)),
            "truncated_weight_fraction": Measure(total(outside_BT & close_BT), num_tokens),
            "clip_fraction": Measure(num_clipped, num_tokens),
            "reference_kl": Measure(total(kl_BT), num_tokens),
        }
        return TokenLoss(torch.where(kept_BT, loss_BT, 0.0), measures)

    def _penalties(self, logprobs_BT: "Tensor", view: TokenView) -> "tuple[Tensor, Tensor]":
        """Penalty terms of the loss, and the KL estimates of all loss tokens, without gradient."""
        import torch

        from rl.algorithms.corrections import check_finite

        penalties_BT, kl_BT = torch.zeros_like(logprobs_BT), torch.zeros_like(logprobs_BT)
        reference_BT = view.reference_logprobs_BT
        if reference_BT is not None:
            check_finite(reference_BT, view.loss_mask_BT, "reference")
            estimate = ESTIMATORS[self.reference_kl_estimator]
            kl_BT = torch.where(view.loss_mask_BT, estimate(reference_BT - view.logprobs_BT.detach()), 0.0)
            if self.reference_kl_in == "loss":
                penalties_BT = self.reference_kl * estimate(reference_BT - logprobs_BT)
        if self.entropy_bonus > 0:
            penalties_BT = penalties_BT - self.entropy_bonus * view.entropy_BT
        return penalties_BT, kl_BT

    def _edited(self, group: Group, advantages: Advantages) -> Advantages:
        bound = self.advantage_max
        is_filtered = [self.overlong_filtering and _is_cut(one) for one in group.rollouts]
        return tuple(
            one if one is None else 0.0 if is_cut else one if bound is None else max(-bound, min(bound, one))
            for one, is_cut in zip(advantages, is_filtered, strict=True)
        )


def _is_cut(rollout: Rollout) -> bool:
    return bool(rollout.turns) and rollout.turns[-1].finish == "length"
