"""Which objectives of a token are there? Losses of importance ratio and advantage, without corrections and penalties.

l is the learner's logprob of a token, s the engine's, A the advantage; sg() stops the gradient. A step makes one
update, so the policy that PPO calls old, and decoupled PPO calls proximal (https://arxiv.org/abs/2505.24298), is the
learner's before the update: its ratio exp(l - sg(l)) has the value 1 and the gradient of l, and clipping it would do
nothing.
"""

import torch
from torch import Tensor

from rl.algorithms.policy_gradient import Terms


def surrogate(logprobs_BT: Tensor, weights_BT: Tensor, advantages_BT: Tensor) -> Terms:
    """-w * exp(l - sg(l)) * A, where w is the importance weight between learner and engine."""
    return Terms(-weights_BT * (logprobs_BT - logprobs_BT.detach()).exp() * advantages_BT)


def clipped(
    logprobs_BT: Tensor, engine_BT: Tensor, advantages_BT: Tensor, low: float, high: float, ratio_max: float | None
) -> Terms:
    """-min(r * A, clip(r, 1 - low, 1 + high) * A) with r = exp(l - s); where A < 0, r is at most `ratio_max`.

    PPO, https://arxiv.org/abs/1707.06347, with the engine's policy as the old one, so no importance weight is applied
    besides. The bound is dual clipping, https://arxiv.org/abs/1912.09729.
    """
    return _clipped((logprobs_BT - engine_BT).exp(), advantages_BT, low, high, ratio_max)


def clipped_sequences(
    logprobs_BT: Tensor, delta_BT: Tensor, advantages_BT: Tensor, mask_BT: Tensor, low: float, high: float
) -> Terms:
    """-min(s * A, clip(s, 1 - low, 1 + high) * A) of each token, where s has the value of the sequence's ratio, the
    geometric mean of its tokens' ratios, and the gradient of the token: GSPO-token, https://arxiv.org/abs/2507.18071,
    equations 7 and 13. `delta_BT` is l - s of all loss tokens (`mask_BT`), those included that a correction leaves out.
    """
    num_tokens_B1 = mask_BT.sum(dim=-1, keepdim=True).clamp(min=1)
    mean_B1 = torch.where(mask_BT, delta_BT, 0.0).sum(dim=-1, keepdim=True) / num_tokens_B1
    ratio_BT = mean_B1.exp() * (logprobs_BT - logprobs_BT.detach()).exp()
    return _clipped(ratio_BT, advantages_BT, low, high, None)


def per_sequence(mask_BT: Tensor, num_loss_tokens: int, num_loss_rows: int) -> Tensor:
    """Factors [B, 1] that turn the mean over the step's tokens into the mean over its rows of the mean over a row's
    tokens.
    """
    return num_loss_tokens / (num_loss_rows * mask_BT.sum(dim=-1, keepdim=True).clamp(min=1))


def _clipped(ratio_BT: Tensor, advantages_BT: Tensor, low: float, high: float, ratio_max: float | None) -> Terms:
    lowest, highest = 1.0 - low, 1.0 + high
    bounded_BT = ratio_BT
    if ratio_max is not None:
        bounded_BT = torch.where(advantages_BT < 0, ratio_BT.clamp(max=ratio_max), ratio_BT)
    loss_BT = -torch.minimum(bounded_BT * advantages_BT, ratio_BT.clamp(lowest, highest) * advantages_BT)
    return Terms(loss_BT, ((ratio_BT < lowest) & (advantages_BT < 0)) | ((ratio_BT > highest) & (advantages_BT > 0)))
