"""How are token logprobs and entropies computed from hidden states, a chunk of tokens at a time?

This is the only place where logits of position t - 1 are matched with token t. Logits exist only for one chunk of
tokens at a time; the backward pass computes them again.
"""

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from rl.data_types import Batch


def token_logprobs(
    hidden_BTD: Tensor,
    head_weight_VD: Tensor,
    token_ids_BT: Tensor,
    mask_BT: Tensor,
    temperature: float,
    chunk_tokens: int,
) -> tuple[Tensor, Tensor]:
    """Logprobs and entropies of the tokens under `mask_BT`, in nats, after the temperature.

    `hidden_BTD` are the last hidden states as the head takes them; `head_weight_VD` is the head, which has no bias.
    Returns `logprobs_BT` and `entropy_BT` (float32, with gradient), both 0 outside the mask: column t of the first is
    log p(token t | tokens before t), of the second the entropy of p(. | tokens before t). Logits are computed in the
    dtype of the hidden states and normalised in float32, as engines do.

    Raises `ValueError` when `mask_BT` selects column 0: nothing comes before it.
    """
    _check_mask(mask_BT)
    # Column t of `predicts` is true where hidden state t predicts a token of the mask, which is token t + 1.
    predicts = mask_BT[:, 1:]
    logprobs_N, entropy_N = _target_logprobs(
        hidden_BTD[:, :-1][predicts], head_weight_VD, token_ids_BT[:, 1:][predicts], temperature, chunk_tokens
    )
    zeros_BT = torch.zeros(mask_BT.shape, dtype=torch.float32, device=hidden_BTD.device)
    return zeros_BT.masked_scatter(mask_BT, logprobs_N), zeros_BT.masked_scatter(mask_BT, entropy_N)


def tree_logprobs(
    hidden_ND: Tensor, head_weight_VD: Tensor, batch: Batch, temperature: float, chunk_tokens: int
) -> tuple[Tensor, Tensor]:
    """As `token_logprobs`, from the hidden states of the batch's tree. A node that several rows share is one target:
    its gradient is the sum of theirs. Raises as `token_logprobs`.
    """
    assert batch.tree is not None
    mask_BT = batch.loss_mask_BT
    _check_mask(mask_BT)
    nodes_N, places_N = batch.tree.nodes_BT[mask_BT].unique(return_inverse=True)
    before_N, targets_N = batch.tree.before_N[nodes_N], batch.tree.ids_1N[0, nodes_N]
    logprobs_N, entropy_N = _target_logprobs(hidden_ND[before_N], head_weight_VD, targets_N, temperature, chunk_tokens)
    zeros_BT = torch.zeros(mask_BT.shape, dtype=torch.float32, device=hidden_ND.device)
    return zeros_BT.masked_scatter(mask_BT, logprobs_N[places_N]), zeros_BT.masked_scatter(mask_BT, entropy_N[places_N])


def _check_mask(mask_BT: Tensor) -> None:
    if mask_BT[:, 0].any():
        raise ValueError("the mask selects the first token of a row; no logits predict it, so it must be masked out")


def _target_logprobs(
    hidden_ND: Tensor, head_weight_VD: Tensor, targets_N: Tensor, temperature: float, chunk_tokens: int
) -> tuple[Tensor, Tensor]:
    """Of each target after its hidden state; both [N]."""
    logprobs: list[Tensor] = []
    entropies: list[Tensor] = []
    for hidden_CD, targets_C in zip(hidden_ND.split(chunk_tokens), targets_N.split(chunk_tokens), strict=True):
        logprobs_C, entropy_C = checkpoint(
            _chunk_logprobs,
            hidden_CD,
            head_weight_VD,
            targets_C,
            temperature,
            use_reentrant=False,
            preserve_rng_state=False,
        )
        logprobs.append(logprobs_C)
        entropies.append(entropy_C)
    return torch.cat(logprobs), torch.cat(entropies)


def _chunk_logprobs(
    hidden_CD: Tensor, head_weight_VD: Tensor, targets_C: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    logits_CV = functional.linear(hidden_CD, head_weight_VD).float() / temperature
    logprobs_CV = logits_CV.log_softmax(dim=-1)
    entropy_C = -(logprobs_CV.exp() * logprobs_CV).sum(dim=-1)
    return logprobs_CV.gather(-1, targets_C[:, None]).squeeze(-1), entropy_C
