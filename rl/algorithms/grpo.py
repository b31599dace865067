"""GRPO: group-relative advantages and a token-level policy-gradient loss with off-policy corrections.

Sources: GRPO, https://arxiv.org/abs/2402.03300; token-level mean over the whole step and asymmetric clipping: DAPO,
https://arxiv.org/abs/2503.14476; no normalisation by length: Dr. GRPO, https://arxiv.org/abs/2503.20783; two-sided
clipping: INTELLECT-2, https://arxiv.org/abs/2505.07291.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from rl.algorithms.advantages import group_advantages
from rl.algorithms.algorithm import Advantages, Algorithm, Measure, TokenLoss, TokenView
from rl.data_types import Group

if TYPE_CHECKING:
    from torch import Tensor


class Grpo(Algorithm):
    """GRPO: group-relative advantages and a token-level policy-gradient loss with off-policy corrections."""

    algorithm: Literal["grpo"] = "grpo"
    """Name of the algorithm."""
    baseline: Literal["leave_one_out", "mean"] = "leave_one_out"
    """Baseline of a reward: the mean of the group's other valid rewards, or of all its valid rewards."""
    scale_by_std: bool = False
    """Divide advantages by the standard deviation of the group's rewards."""
    importance_weight_max: Annotated[float, Field(gt=0)] = 2.0
    """Upper bound on the importance weight between learner and engine (truncated importance sampling)."""
    sequence_mismatch_max: Annotated[float, Field(gt=1)] = 2.0
    """Sequences whose mean exp|delta logp| between learner and engine is above this are excluded from the loss. In an
    asynchronous run the difference includes that of the policy versions, so this bounds staleness too."""
    clip_low: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Lower clip of PPO's ratio, 1 - clip_low; null does not clip."""
    clip_high: Annotated[float, Field(gt=0)] | None = None
    """Upper clip of PPO's ratio, 1 + clip_high; set it together with clip_low."""
    reference_kl: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the KL penalty (k3) towards the policy that training started from; 0 loads no reference policy."""

    @model_validator(mode="after")
    def _clips_fit(self) -> "Grpo":
        if (self.clip_low is None) != (self.clip_high is None):
            raise ValueError("set clip_low and clip_high together, or neither")
        # 1.53 is less than 1 + 0.53 in floating point.
        if self.clip_high is not None and self.importance_weight_max < 1 + self.clip_high - 1e-9:
            raise ValueError(
                f"importance_weight_max ({self.importance_weight_max:g}) is below 1 + clip_high"
                f" ({1 + self.clip_high:g}): it would remove the gradient of rewarded tokens before clip_high does;"
                " raise it, or lower clip_high"
            )
        return self

    @property
    def needs_reference(self) -> bool:
        return self.reference_kl > 0

    @property
    def needs_every_row(self) -> bool:
        return self.reference_kl > 0  # the other term is a multiple of the advantage

    def advantages(self, groups: Sequence[Group]) -> list[Advantages]:
        return [group_advantages(group, self.baseline, self.scale_by_std) for group in groups]

    def token_loss(self, view: TokenView) -> TokenLoss:
        """The loss of each token. l is the learner's logprob, s the engine's, A the advantage, sg() stops the gradient.

        - Without clipping: -min(exp(sg(l) - s), w_max) * exp(l - sg(l)) * A. A step makes one update, so PPO's old
          policy is the current policy: the ratio has the value 1 and the gradient of l.
        - With clipping: -min(min(r, w_max) * A, clip(r, 1 - clip_low, 1 + clip_high) * A) with r = exp(l - s). The
          engine's policy is PPO's old policy, so no further importance weight is applied.

        Both add reference_kl * k3(reference - l). w_max is `importance_weight_max`. Sequences whose mean exp|l - s| is
        above `sequence_mismatch_max` are excluded from the sum but counted in its denominator. The denominator is thus
        known before the first forward pass, and a token's weight does not depend on other sequences.

        Measures over loss tokens: `truncated_weight_fraction` (the importance weight was truncated), `clip_fraction`
        (the clipped objective was active), `reference_kl` (k3 of KL(policy || reference), nats). Measure over
        sequences: `masked_fraction` (excluded for their mismatch).
        """
        import torch

        from rl.algorithms.corrections import check_finite, k3, keep_mask, total

        mask_BT, all_logprobs_BT = view.loss_mask_BT, view.logprobs_BT.detach()
        engine_BT = view.columns["logprob"]
        delta_BT = torch.where(mask_BT, all_logprobs_BT - engine_BT, 0.0)
        kept_BT = keep_mask(delta_BT, mask_BT, self.sequence_mismatch_max)
        # Cut the gradient of excluded tokens before the exp below: if exp overflows, inf times 0 would be NaN.
        logprobs_BT = torch.where(kept_BT, view.logprobs_BT, 0.0)
        loss_BT, clipped_BT = self._policy_terms(logprobs_BT, engine_BT, view.advantages_BT)
        reference_kl_BT = torch.zeros_like(loss_BT)
        if view.reference_logprobs_BT is not None:
            check_finite(view.reference_logprobs_BT, mask_BT, "reference")
            reference_kl_BT = k3(view.reference_logprobs_BT - all_logprobs_BT)
            loss_BT = loss_BT + self.reference_kl * k3(view.reference_logprobs_BT - logprobs_BT)
        has_loss_B, num_tokens = mask_BT.any(dim=-1), total(mask_BT)
        measures = {
            "masked_fraction": Measure(total(has_loss_B & ~kept_BT.any(dim=-1)), total(has_loss_B)),
            "truncated_weight_fraction": Measure(
                total(kept_BT & (delta_BT.exp() > self.importance_weight_max)), num_tokens
            ),
            "clip_fraction": Measure(total(clipped_BT & kept_BT), num_tokens),
            "reference_kl": Measure(total(reference_kl_BT[mask_BT]), num_tokens),
        }
        return TokenLoss(torch.where(kept_BT, loss_BT, 0.0), measures)

    def _policy_terms(
        self, logprobs_BT: "Tensor", engine_BT: "Tensor", advantages_BT: "Tensor"
    ) -> "tuple[Tensor, Tensor]":
        """The terms without the KL penalty, and the mask of tokens without gradient, whose clipped term is smaller."""
        import torch

        from rl.algorithms.corrections import truncated_weights

        if self.clip_low is None or self.clip_high is None:
            weights_BT = truncated_weights(logprobs_BT - engine_BT, self.importance_weight_max)
            loss_BT = -weights_BT * (logprobs_BT - logprobs_BT.detach()).exp() * advantages_BT
            return loss_BT, torch.zeros_like(loss_BT, dtype=torch.bool)
        low, high = 1.0 - self.clip_low, 1.0 + self.clip_high
        ratio_BT = (logprobs_BT - engine_BT).exp()
        bounded_BT = ratio_BT.clamp(max=self.importance_weight_max)
        loss_BT = -torch.minimum(bounded_BT * advantages_BT, ratio_BT.clamp(low, high) * advantages_BT)
        return loss_BT, ((ratio_BT < low) & (advantages_BT < 0)) | ((ratio_BT > high) & (advantages_BT > 0))
