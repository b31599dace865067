"""How are the policy's logprobs and entropies of a batch computed, in the number format that the engine serves?

Master weights are float32. For a bfloat16 policy each forward pass rounds them as the engine does, so that learner and
engine compute with the same values, and the gradient passes the rounding unchanged to the master weights (a
straight-through estimator). Autocast would not do: it leaves experts, norms and the residual stream in float32. Like
the engine, it keeps routers and Mamba's A in float32: rounded routers send tokens to other experts.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel

from rl.data_types import Batch
from rl.learner.logprobs import token_logprobs, tree_logprobs
from rl.precision.float32_weights import float32_weights
from rl.weights.merged import merged_experts


class UnsupportedHeadError(ValueError):
    """The policy's logits, or its loss, are more than one matrix product of its last hidden states gives."""


def check_head(model: PreTrainedModel) -> None:
    """Raise `UnsupportedHeadError` for heads whose logits `token_logprobs` would not reproduce."""
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear) or head.bias is not None:
        raise UnsupportedHeadError(
            f"{type(model).__name__}: the head must be a linear layer without bias, it is {head}"
        )
    for key in ("final_logit_softcapping", "logits_scaling", "logit_scale", "output_multiplier", "lm_head_multiplier"):
        value = getattr(model.config.get_text_config(), key, None)
        if value not in (None, 1, 1.0):
            raise UnsupportedHeadError(f"{type(model).__name__}: {key} {value} is more than a matrix product")


def policy_logprobs(
    model: PreTrainedModel, batch: Batch, dtype: torch.dtype, temperature: float, chunk_tokens: int
) -> tuple[Tensor, Tensor]:
    """`token_logprobs` of the batch's loss tokens under `model`, computed in `dtype`.

    The temperature divides the logits, so that the distribution is the one the engine samples from and reports.
    """
    decoder, head = model.base_model, model.get_output_embeddings()
    assert isinstance(head, nn.Linear)
    kept = float32_weights(decoder)
    parameters = {name: p if name in kept else p.to(dtype) for name, p in decoder.named_parameters()}
    parameters |= merged_experts(decoder, dtype)
    output = functional_call(decoder, parameters, kwargs=decoder_inputs(batch))
    return batch_logprobs(output.last_hidden_state, head.weight.to(dtype), batch, temperature, chunk_tokens)


def decoder_inputs(batch: Batch) -> dict[str, Any]:
    """Arguments of the decoder's forward pass: padded rows, or the nodes of the batch's tree as one row."""
    if batch.tree is None:
        return {"input_ids": batch.token_ids_BT, "attention_mask": batch.attention_mask_BT, "use_cache": False}
    tree = batch.tree
    return {
        "input_ids": tree.ids_1N,
        "position_ids": tree.positions_1N,
        "prefix_tree": tree,
        "attention_mask": torch.empty(1, 1, 1, 1),  # with four axes: transformers makes no mask of its own
        "use_cache": False,
    }


def batch_logprobs(
    hidden: Tensor, head_weight_VD: Tensor, batch: Batch, temperature: float, chunk_tokens: int
) -> tuple[Tensor, Tensor]:
    """`token_logprobs` from the decoder's last hidden states."""
    if batch.tree is not None:
        return tree_logprobs(hidden[0], head_weight_VD, batch, temperature, chunk_tokens)
    return token_logprobs(hidden, head_weight_VD, batch.token_ids_BT, batch.loss_mask_BT, temperature, chunk_tokens)
