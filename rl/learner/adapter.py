"""How is a low-rank adapter trained instead of all weights?

LoRA (Hu et al. 2021, https://arxiv.org/abs/2106.09685, section 4.1): a frozen weight W acts as W + alpha / rank * B A,
and only A and B are trained. B begins at 0, so training begins at the checkpoint. peft adds the matrices to the model.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from rl.config.learner import AdapterConfig
from rl.config.saved_policy import write_base
from rl.precision.number_format import NumberFormat
from rl.weights.merged import ADAPTER, adapted_layers

WEIGHTS_FILE = "adapter_model.safetensors"  # peft's name
PREFIX = "base_model.model."
"""What peft puts before the names of a model's layers in its files."""


class AdapterError(ValueError):
    """No layer of the policy can have the adapter, or a saved adapter is another one."""


def add_adapter(model: PreTrainedModel, config: AdapterConfig, seed: int) -> None:
    """Freeze the model and put a new adapter into it, a function of the seed.

    Raises `AdapterError` if no linear layer matches, or if embeddings, the head or convolutions do.
    """
    with torch.random.fork_rng(devices=[]):  # A is random; it must depend on nothing that came before
        torch.manual_seed(seed)
        try:
            inject_adapter_in_model(_lora(config, config.pattern), model, adapter_name=ADAPTER)
        except ValueError:
            linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
            kinds = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
            raise AdapterError(
                f"adapter.targets {', '.join(config.targets)} match no layer that can have an adapter; linear"
                f" layers of {type(model).__name__}: {kinds}"
            ) from None
    others = [name for name, layer in adapted_layers(model) if not isinstance(layer.base_layer, nn.Linear)]
    if others or not isinstance(model.get_output_embeddings(), nn.Linear):
        raise AdapterError(
            f"adapter.targets {', '.join(config.targets)} match {', '.join(others[:3]) or 'the head'}; only"
            " linear layers between the embeddings and the head can have an adapter"
        )


def describe_adapter(model: nn.Module) -> str:
    """How many weights beside how many layers are trained, as words for people; empty without an adapter."""
    layers = [layer for _, layer in adapted_layers(model)]
    num = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return f"; only an adapter of {num / 1e6:,.1f} M weights beside {len(layers)} layers is trained" if layers else ""


@contextlib.contextmanager
def without_adapter(model: nn.Module) -> Iterator[None]:
    """The model is the checkpoint that training began from: the reference policy."""
    layers = [layer for _, layer in adapted_layers(model)]
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
    targets = sorted(name for name, _ in adapted_layers(model))
    saved = _lora(config, targets)
    saved.base_model_name_or_path = str(base)
    saved.save_pretrained(str(folder))
    write_base(folder, base, precision.model_dump(mode="json"))


def save_matrices(model: PreTrainedModel, folder: Path) -> None:
    """Write what `load_adapter` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = get_peft_model_state_dict(model, adapter_name=ADAPTER)
    save_file({PREFIX + name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS_FILE)


def load_adapter(model: PreTrainedModel, folder: Path) -> None:
    """Take over the matrices that were saved. Raises `AdapterError` for an adapter of another shape."""
    tensors = {name.removeprefix(PREFIX): tensor for name, tensor in load_file(folder / WEIGHTS_FILE).items()}
    expected = {name: tensor.shape for name, tensor in get_peft_model_state_dict(model, adapter_name=ADAPTER).items()}
    if {name: tensor.shape for name, tensor in tensors.items()} != expected:
        raise AdapterError(f"{folder} holds another adapter than the configuration describes")
    set_peft_model_state_dict(model, tensors, adapter_name=ADAPTER)


def _lora(config: AdapterConfig, targets: str | list[str]) -> LoraConfig:
    return LoraConfig(
        r=config.rank, lora_alpha=config.alpha, lora_dropout=0.0, target_modules=targets, task_type="CAUSAL_LM"
    )  # type: ignore[call-arg]
