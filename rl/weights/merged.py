"""What are the policy's weights, if a low-rank adapter is trained beside some of them?"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

ADAPTER = "default"
"""peft's name of the only adapter."""
BASE = ".base_layer"


@torch.no_grad()
def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """The model's state under the names that it has without an adapter; adapted weights are W + alpha / rank * B A.

    Tensors that have no adapter are the model's own.
    """
    adapted = dict(adapted_layers(model))
    if not adapted:
        return model.state_dict()
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        layer, is_base, rest = name.rpartition(BASE)
        if is_base and layer in adapted:
            is_weight = rest == ".weight"
            state[layer + rest] = tensor + adapted[layer].get_delta_weight(ADAPTER) if is_weight else tensor
        elif not any(name.startswith(f"{layer}.lora_") for layer in adapted):
            state[name] = tensor
    return state


def adapted_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Name and module (peft's `LoraLayer`) of each layer with an adapter; the name is that of the layer without one.

    Told by its methods: engines use this module too, and importing peft takes a second.
    """
    for name, module in model.named_modules():
        if hasattr(module, "base_layer") and hasattr(module, "get_delta_weight"):
            yield name, module
