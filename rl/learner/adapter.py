"""How is a low-rank adapter trained instead of all weights?

LoRA (Hu et al. 2021, https://arxiv.org/abs/2106.09685, section 4.1): a frozen weight W acts as W + alpha / rank * B A,
and only A and B are trained. B begins at 0, so training begins at the checkpoint. peft adds the matrices to the model.
"""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from rl.config.adapted import is_expert
from rl.config.learner import AdapterConfig
from rl.config.saved_policy import write_base
from rl.precision.number_format import NumberFormat
from rl.weights.merged import ADAPTER, BASE, adapted_weights, is_adapted_experts

WEIGHTS_FILE = "adapter_model.safetensors"  # peft's name
PREFIX = "base_model.model."
"""What peft puts before the names of a model's layers in its files."""


class AdapterError(ValueError):
    """No layer of the policy can have the adapter, or a saved adapter is another one."""


def add_adapter(model: PreTrainedModel, config: AdapterConfig, seed: int) -> None:
    """Freeze the model and put a new adapter into it, a function of the seed.

    Raises `AdapterError` if no linear layer matches, if embeddings, the head or convolutions do, or if there are no
    experts that should have one.
    """
    experts = _stacked_experts(model) if config.experts else []
    if config.experts and not experts:
        raise AdapterError(f"adapter.experts is set, but {type(model).__name__} has no experts; remove it")
    layers = _chosen_layers(model, config)
    with torch.random.fork_rng(devices=[]):  # A is random; it must depend on nothing that came before
        torch.manual_seed(seed)
        _inject(model, _lora(config, layers, experts))


def read_adapter(model: PreTrainedModel, folder: Path) -> None:
    """Freeze the model and put the adapter into it that `save_adapter` wrote, or peft. Raises `AdapterError`."""
    config = LoraConfig.from_pretrained(str(folder))
    config.inference_mode = False  # so that only the base counts as frozen
    _inject(model, config)  # type: ignore[arg-type]
    load_adapter(model, folder)


def describe_adapter(model: nn.Module) -> str:
    """How many weights beside how many layers are trained, as words for people; empty without an adapter."""
    layers = [layer for _, layer in adapted_weights(model)]
    num = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return f"; only an adapter of {num / 1e6:,.1f} M weights beside {len(layers)} weights is trained" if layers else ""


def merge_experts_in_passes(model: PreTrainedModel) -> None:
    """From now on experts compute with the weights that they hold: `rl.learner.forward` puts in merged ones.

    peft would merge within the pass, by registering a parametrization. That does not work where the pass replaces the
    model's weights, and it would round differently from engines, which merge in float32.
    """
    layers: list[Any] = [layer for layer in model.modules() if is_adapted_experts(layer)]
    for layer in reversed(layers):  # inner ones first
        layer.forward = layer.base_layer.forward


@contextlib.contextmanager
def without_adapter(model: nn.Module) -> Iterator[None]:
    """The model is the checkpoint that training began from: the reference policy."""
    layers = [layer for _, layer in adapted_weights(model)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def save_adapter(
    model: PreTrainedModel, config: AdapterConfig, base: Path, precision: NumberFormat, folder: Path
) -> None:
    """Write the adapter in peft's format, which `PeftModel.from_pretrained(base, folder)` loads, and name its base."""
    save_matrices(model, folder)
    adapted = list(adapted_weights(model))
    layers = sorted(name.removesuffix(".weight") for name, layer in adapted if not is_adapted_experts(layer))
    saved = _lora(config, layers, _stacked_experts(model) if config.experts else [])
    saved.target_modules = layers  # peft holds a set, whose order would be that of this process's hashes
    saved.base_model_name_or_path = str(base)
    saved.save_pretrained(str(folder))
    write_base(folder, base, precision.model_dump(mode="json"))


def save_matrices(model: PreTrainedModel, folder: Path) -> None:
    """Write what `load_adapter` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in _matrices(model).items()}, folder / WEIGHTS_FILE)


def load_adapter(model: PreTrainedModel, folder: Path) -> None:
    """Take over the matrices that were saved. Raises `AdapterError` for an adapter of another shape."""
    held, saved = _matrices(model), load_file(folder / WEIGHTS_FILE)
    if {name: tensor.shape for name, tensor in saved.items()} != {name: tensor.shape for name, tensor in held.items()}:
        raise AdapterError(f"{folder} holds another adapter than the configuration describes")
    with torch.no_grad():
        for name, tensor in held.items():
            tensor.copy_(saved[name])


def _matrices(model: nn.Module) -> dict[str, Tensor]:
    """The trained matrices by peft's names in a file; they share the model's memory."""
    return {
        PREFIX + name.replace(f".{ADAPTER}.", "."): parameter.data
        for name, parameter in model.named_parameters()
        if ".lora_" in name
    }


def _chosen_layers(model: PreTrainedModel, config: AdapterConfig) -> list[str]:
    pattern, head = re.compile(config.pattern), model.get_output_embeddings()
    linear = {name for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and layer is not head}
    matched = [name for name, _ in model.named_modules() if pattern.fullmatch(name)]
    if others := [name for name in matched if name not in linear]:
        raise AdapterError(
            f"adapter.targets {', '.join(config.targets)} match {', '.join(others[:3])}; only linear layers between"
            " the embeddings and the head can have an adapter"
        )
    if not matched and not config.experts:
        kinds = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
        raise AdapterError(
            f"adapter.targets {', '.join(config.targets)} match no layer that can have an adapter; linear layers of"
            f" {type(model).__name__}: {kinds}"
        )
    return matched


def _inject(model: PreTrainedModel, config: LoraConfig) -> None:
    # Inside a module without a `config`, because peft would take linear layers of some families, shared experts among
    # them, for the routed experts that older versions of transformers held as linear layers.
    around = nn.Module()
    around.policy = model
    inject_adapter_in_model(config, around, adapter_name=ADAPTER)


def _stacked_experts(model: nn.Module) -> list[str]:
    """Names of the tensors in which transformers stacks experts, in the model without an adapter."""
    names = (name.replace(BASE, "") for name, parameter in model.named_parameters() if parameter.dim() == 3)
    return sorted(name for name in names if is_expert(name))


def _lora(config: AdapterConfig, layers: list[str], experts: list[str]) -> LoraConfig:
    return LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=0.0,
        target_modules=layers,
        target_parameters=experts or None,
        task_type="CAUSAL_LM",
    )  # type: ignore[call-arg]
