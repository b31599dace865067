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
    for name, layer in adapted_weights(model):
        state[name] = _merged(state[name], layer)
    return state


def base_state(model: nn.Module) -> dict[str, Tensor]:
    """The model's state without its adapter, under the names that it has without one."""
    state, adapted = model.state_dict(), dict(adapted_weights(model))
    if not adapted:
        return state
    layers = {name.rpartition(".")[0] for name in adapted}
    base: dict[str, Tensor] = {}
    for name, tensor in state.items():
        plain, is_lora, _ = name.partition(".lora_")
        if is_lora and plain.replace(BASE, "") in layers:
            continue
        plain = name.replace(BASE, "")
        base[plain if plain.rpartition(".")[0] in layers else name] = tensor
    return base


def adapter_state(model: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """A and B by the name of the weight that they belong to."""
    return {name: _matrices(layer) for name, layer in adapted_weights(model)}


def merged_experts(model: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """Experts with an adapter as forward passes see them, merged and rounded, by the names of the model's parameters.

    The gradient passes the rounding unchanged to A and B.
    """
    found: dict[str, Tensor] = {}
    layers: Iterator[tuple[str, Any]] = model.named_modules()
    for name, layer in layers:
        if is_adapted_experts(layer) and not layer.disable_adapters:
            experts: Any = layer
            path = name
            while hasattr(experts, "base_layer"):  # a layer with two adapted tensors is wrapped twice
                path += BASE
                experts = experts.base_layer
            weight = experts.get_parameter(layer.parameter_name)
            found[f"{path}.{layer.parameter_name}"] = _merged(weight, layer).to(dtype)
    return found


def merged(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """W + scale * B A, in float32, as peft computes it. W is [..., out, in], A [..., rank, in], B [..., out, rank]."""
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


def adapted_weights(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Each weight with an adapter: its name in the model without one, and peft's `LoraLayer`.

    Told by its methods: engines use this module too, and importing peft takes a second.
    """
    for name, module in model.named_modules():
        if hasattr(module, "base_layer") and hasattr(module, "get_delta_weight"):
            yield f"{name.replace(BASE, '')}.{getattr(module, 'parameter_name', 'weight')}", module


def is_adapted_experts(module: Any) -> bool:
    """Whether this is peft's wrapper around one tensor of stacked experts."""
    return hasattr(module, "base_layer") and hasattr(module, "parameter_name")


def _merged(weight: Tensor, layer: Any) -> Tensor:
    return merged(weight, *_matrices(layer), layer.scaling[ADAPTER])


def _matrices(layer: Any) -> tuple[Tensor, Tensor]:
    """A and B. Those of stacked experts are stacked as the experts are: peft holds them side by side."""
    a, b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
    if not is_adapted_experts(layer):
        return a, b
    a = a.reshape(layer.num_experts, -1, a.shape[-1])
    b = b.reshape(b.shape[0], -1, layer.num_experts).permute(2, 0, 1)
    if getattr(layer.get_base_layer(), "is_transposed", False):  # W is [in, out]
        return b.transpose(1, 2), a.transpose(1, 2)
    return a, b
