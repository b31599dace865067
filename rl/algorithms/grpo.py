"""What is minimised? GRPO's token-level policy gradient, with what corrects for off-policy tokens.

Sources: GRPO, https://arxiv.org/abs/2402.03300; token-level mean over the whole step and asymmetric clipping: DAPO,
https://arxiv.org/abs/2503.14476; no normalisation by length: Dr. GRPO, https://arxiv.org/abs/2503.20783; two-sided
clipping: INTELLECT-2, https://arxiv.org/abs/2505.07291.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from rl.algorithms.corrections import check_finite, k3, keep_mask, truncated_weights
from rl.config.experiment import LossConfig
from rl.data_types import Batch


@dataclass(frozen=True, slots=True)
class LossSums:
    """Sums over loss tokens (sequences where it says so) of one or more micro-batches; float64 scalars.

    All loss tokens enter, those of masked sequences too, except in `clipped` and `truncated`, which masked sequences
    cannot be part of.
    """

    loss: Tensor
    """Already divided by the step's loss tokens."""
    mismatch: Tensor
    """exp|delta|"""
    mismatch_kl: Tensor
    """k3 of KL(sampler || learner), nats."""
    truncated: Tensor
    clipped: Tensor
    reference_kl: Tensor
    """k3 of KL(policy || reference), nats."""
    masked_sequences: Tensor
    sequences: Tensor
    """Sequences with at least one loss token."""
    entropy: Tensor
    """Nats."""

    @classmethod
    def nothing(cls) -> "LossSums":
        return cls(**{f.name: torch.zeros((), dtype=torch.float64) for f in fields(cls)})

    def __add__(self, other: "LossSums") -> "LossSums":
        return LossSums(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})


def grpo_loss(
    logprobs_BT: Tensor,
    entropy_BT: Tensor,
    batch: Batch,
    config: LossConfig,
    reference_logprobs_BT: Tensor | None = None,
) -> tuple[Tensor, LossSums]:
    """The loss of one micro-batch (a scalar with gradient) and what is measured; `entropy_BT` is only measured.

    With l the learner's logprob, s the sampler's, A the advantage and sg() what carries no gradient, a token's term is

    - without clipping: -min(exp(sg(l) - s), w_max) * exp(l - sg(l)) * A. A step makes one update, so the policy that is
      optimised against is the current one: its ratio is 1 in value and carries the gradient of l;
    - with clipping: -min(min(r, w_max) * A, clip(r, 1 - clip_low, 1 + clip_high) * A) with r = exp(l - s): the sampler
      is PPO's old policy, so no further importance weight is applied.

    plus reference_kl * k3(reference - l). w_max is `importance_weight_max`. Sequences whose mean exp|l - s| is above
    `sequence_mismatch_max` are left out of the sum. The sum is divided by `batch.num_loss_tokens`, the whole step's
    count before any was left out: the denominator is known before the first forward pass, and a token's weight does
    not depend on what happened to other sequences.

    Raises `NonFiniteError` when a logprob under the loss mask is NaN or infinite.
    """
    check_finite(logprobs_BT, batch.loss_mask_BT, "learner")
    check_finite(batch.sampler_logprobs_BT, batch.loss_mask_BT, "sampler")
    mask_BT, all_logprobs_BT = batch.loss_mask_BT, logprobs_BT.detach()
    delta_BT = torch.where(mask_BT, all_logprobs_BT - batch.sampler_logprobs_BT, 0.0)
    kept_BT = keep_mask(delta_BT, mask_BT, config.sequence_mismatch_max)
    # The gradient of what is left out ends here: times 0 it would be NaN where exp overflows further down.
    logprobs_BT = torch.where(kept_BT, logprobs_BT, 0.0)
    loss_BT, clipped_BT = _policy_terms(logprobs_BT, batch.sampler_logprobs_BT, batch.advantages_BT, config)
    reference_kl_BT = torch.zeros_like(loss_BT)
    if reference_logprobs_BT is not None:
        check_finite(reference_logprobs_BT, mask_BT, "reference")
        reference_kl_BT = k3(reference_logprobs_BT - all_logprobs_BT)
        loss_BT = loss_BT + config.reference_kl * k3(reference_logprobs_BT - logprobs_BT)
    loss = torch.where(kept_BT, loss_BT, 0.0).sum() / batch.num_loss_tokens
    has_loss_B = mask_BT.any(dim=-1)
    sums = LossSums(
        loss=_total(loss),
        mismatch=_total(delta_BT.abs().exp()[mask_BT]),
        mismatch_kl=_total(k3(delta_BT)[mask_BT]),
        truncated=_total(kept_BT & (delta_BT.exp() > config.importance_weight_max)),
        clipped=_total(clipped_BT & kept_BT),
        reference_kl=_total(reference_kl_BT[mask_BT]),
        masked_sequences=_total(has_loss_B & ~kept_BT.any(dim=-1)),
        sequences=_total(has_loss_B),
        entropy=_total(entropy_BT[mask_BT]),
    )
    return loss, sums


def _policy_terms(
    logprobs_BT: Tensor, sampler_BT: Tensor, advantages_BT: Tensor, config: LossConfig
) -> tuple[Tensor, Tensor]:
    """The terms without the penalty, and where the clipped one is the smaller, so that the token gives no gradient."""
    if config.clip_low is None or config.clip_high is None:
        weights_BT = truncated_weights(logprobs_BT - sampler_BT, config.importance_weight_max)
        loss_BT = -weights_BT * (logprobs_BT - logprobs_BT.detach()).exp() * advantages_BT
        return loss_BT, torch.zeros_like(loss_BT, dtype=torch.bool)
    low, high = 1.0 - config.clip_low, 1.0 + config.clip_high
    ratio_BT = (logprobs_BT - sampler_BT).exp()
    bounded_BT = ratio_BT.clamp(max=config.importance_weight_max)
    loss_BT = -torch.minimum(bounded_BT * advantages_BT, ratio_BT.clamp(low, high) * advantages_BT)
    return loss_BT, ((ratio_BT < low) & (advantages_BT < 0)) | ((ratio_BT > high) & (advantages_BT > 0))


def _total(values: Tensor) -> Tensor:
    return values.detach().sum(dtype=torch.float64).cpu()
