"""What are the policy's weights, if a low-rank adapter is trained beside some of them?

The learner merges A and B into a copy of each adapted weight, or publishes the adapter alone. Then engines merge: both
use `merged`, so that the results are equal.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rl.weights.source import WeightsError

ADAPTER = "default"
"""peft's name of the only adapter."""
BASE = ".base_layer"
A, B = ".lora_A", ".lora_B"
"""What is appended to the name of an adapted weight where its adapter is published alone."""


@torch.no_grad()
def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """The model's state under the names that it has without an adapter; adapted weights are W + alpha / rank * B A.

    Tensors that have no adapter are the model's own.
    """
    state = base_state(model)
    for name, layer in adapted_layers(model):
        weight = state[f"{name}.weight"]
        state[f"{name}.weight"] = merged(weight, *_matrices(layer), layer.scaling[ADAPTER])
    return state


def base_state(model: nn.Module) -> dict[str, Tensor]:
    """The model's state without its adapter, under the names that it has without one."""
    adapted = dict(adapted_layers(model))
    if not adapted:
        return model.state_dict()
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        layer, is_base, rest = name.rpartition(BASE)
        if is_base and layer in adapted:
            state[layer + rest] = tensor
        elif not any(name.startswith(f"{layer}.lora_") for layer in adapted):
            state[name] = tensor
    return state


def adapter_state(model: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """A and B by the name of the weight that they belong to."""
    return {f"{name}.weight": _matrices(layer) for name, layer in adapted_layers(model)}


def merged(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """W + scale * B A, in float32, as peft computes it. W is [out, in], A [rank, in], B [out, rank]."""
    return weight.float() + (b.float() @ a.float()) * scale


def with_adapter(
    base: Iterable[tuple[str, Tensor]], adapter: Mapping[str, Tensor], scale: float, device: torch.device
) -> Iterator[tuple[str, Tensor]]:
    """The base's tensors, merged where there is an adapter, in the base's dtypes. Products are computed on `device`.

    `adapter` is what `rl.weights.names.adapter_tensors` yields.
    """
    for name, tensor in base:
        if name + A in adapter:
            weight, a, b = (one.to(device) for one in (tensor, adapter[name + A], adapter[name + B]))
            tensor = merged(weight, a, b, scale).to(tensor.dtype)
        yield name, tensor


def check_adapter(names: Iterable[str], base: Iterable[str]) -> None:
    """Raise `WeightsError` if the published adapter has matrices for weights that the base lacks."""
    known = set(base)
    if unknown := [name for name in names if name.removesuffix(A).removesuffix(B) not in known]:
        raise WeightsError(
            f"the adapter has {len(unknown)} matrices that fit no weight of its base, first {unknown[0]}"
        )


def adapted_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Name and module (peft's `LoraLayer`) of each layer with an adapter; the name is that of the layer without one.

    Told by its methods: engines use this module too, and importing peft takes a second.
    """
    for name, module in model.named_modules():
        if hasattr(module, "base_layer") and hasattr(module, "get_delta_weight"):
            yield name, module


def _matrices(layer: Any) -> tuple[Tensor, Tensor]:
    return layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
