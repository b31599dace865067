"""GRPO: advantages within a group, and a token-level policy gradient, with what corrects for off-policy tokens.

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
    """GRPO: advantages within a group, a token-level policy-gradient loss, and what corrects for off-policy tokens."""

    algorithm: Literal["grpo"] = "grpo"
    """Name of the algorithm."""
    baseline: Literal["leave_one_out", "mean"] = "leave_one_out"
    """What a reward is compared with: the mean of the group's other valid rewards, or of all of them."""
    scale_by_std: bool = False
    """Divide advantages by the group's standard deviation."""
    importance_weight_max: Annotated[float, Field(gt=0)] = 2.0
    """Upper bound of the importance weight between learner and engine (truncated importance sampling)."""
    sequence_mismatch_max: Annotated[float, Field(gt=1)] = 2.0
    """Sequences whose mean exp|delta logp| between learner and engine is above this leave the loss."""
    clip_low: Annotated[float, Field(gt=0, lt=1)] | None = None
    """PPO clipping below 1 - clip_low; none trains strictly on the current policy's gradient."""
    clip_high: Annotated[float, Field(gt=0)] | None = None
    """PPO clipping above 1 + clip_high; set together with clip_low."""
    reference_kl: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the KL penalty (k3) to the policy that training started from; 0 keeps no reference in memory."""

    @model_validator(mode="after")
    def _clips_fit(self) -> "Grpo":
        if (self.clip_low is None) != (self.clip_high is None):
            raise ValueError("set clip_low and clip_high together, or neither")
        # 1.53 is less than 1 + 0.53 in floating point.
        if self.clip_high is not None and self.importance_weight_max < 1 + self.clip_high - 1e-9:
            raise ValueError(
                f"importance_weight_max ({self.importance_weight_max:g}) is below 1 + clip_high"
                f" ({1 + self.clip_high:g}): it would end the gradient of rewarded tokens before clip_high does;"
                " raise it, or lower clip_high"
            )
        return self

    @property
    def needs_reference(self) -> bool:
        return self.reference_kl > 0

    def advantages(self, groups: Sequence[Group]) -> list[Advantages]:
        return [group_advantages(group, self.baseline, self.scale_by_std) for group in groups]

    def token_loss(self, view: TokenView) -> TokenLoss:
        """With l the learner's logprob, s the engine's, A the advantage and sg() what carries no gradient, a token's
        term is

        - without clipping: -min(exp(sg(l) - s), w_max) * exp(l - sg(l)) * A. A step makes one update, so the policy
          that is optimised against is the current one: its ratio is 1 in value and carries the gradient of l;
        - with clipping: -min(min(r, w_max) * A, clip(r, 1 - clip_low, 1 + clip_high) * A) with r = exp(l - s): the
          engine's policy is PPO's old policy, so no further importance weight is applied.

        plus reference_kl * k3(reference - l). w_max is `importance_weight_max`. Sequences whose mean exp|l - s| is
        above `sequence_mismatch_max` are left out of the sum, and stay in its denominator: that is known before the
        first forward pass, and a token's weight does not depend on what happened to other sequences.

        Measures, over loss tokens: `truncated_weight_fraction` (the importance weight was truncated), `clip_fraction`
        (the clipped objective was active), `reference_kl` (k3 of KL(policy || reference), nats); over sequences:
        `masked_fraction` (left out for their mismatch).
        """
        import torch

        from rl.algorithms.corrections import check_finite, k3, keep_mask, total

        mask_BT, all_logprobs_BT = view.loss_mask_BT, view.logprobs_BT.detach()
        engine_BT = view.columns["logprob"]
        delta_BT = torch.where(mask_BT, all_logprobs_BT - engine_BT, 0.0)
        kept_BT = keep_mask(delta_BT, mask_BT, self.sequence_mismatch_max)
        # The gradient of what is left out ends here: times 0 it would be NaN where exp overflows further down.
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
        """The terms without the penalty, and where the clipped one is the smaller: such a token gives no gradient."""
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
