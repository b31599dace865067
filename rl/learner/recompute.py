"""How are fewer activations kept? A layer keeps only its input, and is computed again for the gradient.

Activation checkpointing (https://arxiv.org/abs/1604.06174), layer by layer. transformers' own switch does nothing in
evaluation mode, which the learner is in. Two things must not happen in the second pass. It must not choose other
experts: `topk` keeps what it chose, so the second pass sends every token to the experts of the first. And it must not
use other weights: the forward pass computes with rounded weights in place of the model's own (`rl.learner.forward`),
which are not there any more when the gradient is computed, so each layer holds on to those of its first pass.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts
from transformers import PreTrainedModel

from rl.config.adapted import is_expert

KEPT = [torch.ops.aten.topk.default]
"""Operations whose results are kept: routers choose experts with them."""


def recompute_layers(model: PreTrainedModel) -> int:
    """From now on the model's layers are computed again for the gradient. Returns how many layers there are.

    The parameters keep their names. Routers are called in both passes (see `rl.learner.router`).
    """
    layers = getattr(model.base_model, "layers", ())
    for layer in layers:
        layer.forward = _recomputed(layer, layer.forward)
    return len(layers)


def _recomputed(layer: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    """The layer's `forward` in place of `forward`."""
    # Python sees every operation of a layer whose results may be kept, which can take longer than a GPU needs for them.
    has_router = any(is_expert(name) for name, _ in layer.named_parameters())
    contexts: dict[str, Any] = {}
    if has_router:
        contexts["context_fn"] = partial(create_selective_checkpoint_contexts, KEPT)

    def recomputed(*inputs: Any, **more: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*inputs, **more)
        weights: dict[str, Tensor] = dict(layer.named_parameters())

        def compute(*inputs: Any) -> Any:
            if isinstance(layer, FSDPModule):  # the layer has the same weights again, because FSDP makes them whole
                return forward(*inputs, **more)
            layer.forward = forward
            try:
                return functional_call(layer, weights, inputs, more)
            finally:
                layer.forward = recomputed

        return checkpoint(compute, *inputs, use_reentrant=False, **contexts)

    return recomputed
