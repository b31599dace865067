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
from rl.weights.merged import ADAPTER, adapted_layers

WEIGHTS_FILE = "adapter_model.safetensors"  # peft's name
PREFIX = "base_model.model."
"""What peft puts before the names of a model's layers in its files."""


class AdapterError(ValueError):
    """No layer of the policy can have the adapter, or a saved adapter is another one."""


def add_adapter(model: PreTrainedModel, config: AdapterConfig, seed: int) -> None:
    """Freeze the model and put a new adapter into it, a function of the seed.

    Raises `AdapterError` if no linear layer matches.
    """
    with torch.random.fork_rng(devices=[]):  # A is random; it must depend on nothing that came before
        torch.manual_seed(seed)
        try:
            inject_adapter_in_model(_lora(config, config.pattern), model, adapter_name=ADAPTER)
        except ValueError:
            linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
            kinds = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
            raise AdapterError(
                f"learner.adapter.targets {', '.join(config.targets)} match no layer that can have an adapter; linear"
                f" layers of {type(model).__name__}: {kinds}"
            ) from None


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


def save_adapter(model: PreTrainedModel, config: AdapterConfig, base: Path, folder: Path) -> None:
    """Write the adapter in peft's format; `PeftModel.from_pretrained(base, folder)` loads it."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = get_peft_model_state_dict(model, adapter_name=ADAPTER)
    save_file({PREFIX + name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS_FILE)
    targets = sorted(name for name, _ in adapted_layers(model))
    saved = _lora(config, targets)
    saved.base_model_name_or_path = str(base)
    saved.save_pretrained(str(folder))


def load_adapter(model: PreTrainedModel, folder: Path) -> None:
    """Take over what `save_adapter` wrote. Raises `AdapterError` for an adapter of another shape."""
    tensors = {name.removeprefix(PREFIX): tensor for name, tensor in load_file(folder / WEIGHTS_FILE).items()}
    expected = {name: tensor.shape for name, tensor in get_peft_model_state_dict(model, adapter_name=ADAPTER).items()}
    if {name: tensor.shape for name, tensor in tensors.items()} != expected:
        raise AdapterError(f"{folder} holds another adapter than learner.adapter describes")
    set_peft_model_state_dict(model, tensors, adapter_name=ADAPTER)


def _lora(config: AdapterConfig, targets: str | list[str]) -> LoraConfig:
    return LoraConfig(
        r=config.rank, lora_alpha=config.alpha, lora_dropout=0.0, target_modules=targets, task_type="CAUSAL_LM"
    )  # type: ignore[call-arg]
