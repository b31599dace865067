"""How does a checkpoint become one of 4-bit integers, in which judges and guards are served in a quarter of the memory?

As in Llama Guard 3-1B-INT4 (arXiv 2411.17713, section 3): linear layers in groups of a row's weights that share a
scale, the head with one scale a row, embeddings and norms as they are. Codes are rounded to nearest, symmetric
around 0, and stored as compressed-tensors packs them, which transformers and vLLM read on CPUs and GPUs.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor
from compressed_tensors.config import CompressionFormat
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    QuantizationStatus,
    QuantizationStrategy,
)
from compressed_tensors.quantization.utils import calculate_qparams
from huggingface_hub import save_torch_state_dict
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from rl.config.checkpoint_files import copy_chat, read_config
from rl.config.served import FILE
from rl.export import ExportError, check_is_new, new_folder, served_folder

GROUP_SIZES = (128, 64, 32)
"""Weights that share a scale: the largest that divides every row. Others have no kernel in vLLM for GPUs."""
ALIGNED = 32
"""Rows and columns of a matrix are a multiple of it in vLLM's kernel for CPUs."""
HEAD = "lm_head"


def write_int4(source: Path, out: Path) -> Path:
    """Write the policy of `source` (as of `rl serve`) to the new folder `out`, in bfloat16 but for the 4-bit integers.

    A head that is tied to the embeddings becomes a matrix of its own. Raises `rl.export.ExportError` for a policy that
    holds more than embeddings, norms and linear layers whose sizes fit, or that is quantised already; `ConfigError` and
    `StorageError`.
    """
    check_is_new(out)
    with served_folder(source) as folder:
        _write(folder, out)
    return out


def _write(source: Path, out: Path) -> None:
    described = dict(read_config(source))
    if "quantization_config" in described:
        raise ExportError(f"{source} is quantised already; give the checkpoint that it was made from")
    loaded: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16, output_loading_info=True)
    model, loading = loaded
    if missing := sorted(loading["missing_keys"]):
        raise ExportError(f"{source} lacks {len(missing)} of its model's weights, first {missing[0]}; copy it again")
    layers = _linear_layers(model, source)
    schemes = _schemes(_group_size(layers, source))
    tensors = {
        name: tensor for name, tensor in model.state_dict().items() if name.removesuffix(".weight") not in layers
    }
    for name, layer in layers.items():
        scheme = schemes["head" if name == HEAD else "layers"]
        tensors |= {f"{name}.{part}": tensor for part, tensor in _parts(layer, scheme)}
    quantisation = QuantizationConfig(
        config_groups={**schemes},
        format=CompressionFormat.pack_quantized.value,
        quantization_status=QuantizationStatus.COMPRESSED,
    )
    described.pop("torch_dtype", None)
    described |= {"dtype": "bfloat16", "tie_word_embeddings": False}
    described["quantization_config"] = quantisation.model_dump(mode="json", exclude_none=True)
    with new_folder(out) as partial:
        save_torch_state_dict(tensors, partial, max_shard_size="5GB")
        (partial / "config.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
        copy_chat(source, partial)
        if (source / FILE).is_file():  # of an export
            shutil.copy(source / FILE, partial)


def _linear_layers(model: PreTrainedModel, source: Path) -> dict[str, nn.Linear]:
    """By name. Whoever holds matrices in another kind of module (experts, Mamba layers) is refused."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    known = {id(layer.weight) for layer in layers.values()} | {id(model.get_input_embeddings().weight)}
    others = [name for name, weight in model.named_parameters() if weight.dim() > 1 and id(weight) not in known]
    if others or HEAD not in layers:
        raise ExportError(
            f"{source} ({model.config.model_type}) holds {others[0] if others else f'no {HEAD}'}: only policies whose"
            " layers are attention and dense MLPs become 4-bit integers"
        )
    return layers


def _group_size(layers: dict[str, nn.Linear], source: Path) -> int:
    for name, layer in layers.items():
        if layer.out_features % ALIGNED:
            raise ExportError(
                f"{source}: {name} has {layer.out_features} rows, no multiple of {ALIGNED}, which vLLM's kernels take"
            )
    widths = {layer.in_features for layer in layers.values()}
    for size in GROUP_SIZES:
        if not any(width % size for width in widths):
            return size
    raise ExportError(
        f"{source}: its rows ({', '.join(map(str, sorted(widths)))} weights) are no multiple of {ALIGNED}"
    )


def _schemes(group_size: int) -> dict[str, QuantizationScheme]:
    layers = QuantizationArgs(num_bits=4, strategy=QuantizationStrategy.GROUP, group_size=group_size)
    head = QuantizationArgs(num_bits=4, strategy=QuantizationStrategy.CHANNEL)
    return {
        "layers": QuantizationScheme(targets=["Linear"], weights=layers),
        "head": QuantizationScheme(targets=[f"re:.*{HEAD}"], weights=head),
    }


def _parts(layer: nn.Linear, scheme: QuantizationScheme) -> Iterator[tuple[str, Tensor]]:
    weight, arguments = layer.weight.detach().float(), scheme.weights
    assert arguments is not None
    groups = weight.unflatten(-1, (-1, arguments.group_size or layer.in_features))
    scale, _ = calculate_qparams(groups.amin(-1), groups.amax(-1), arguments)
    compressed = PackedQuantizationCompressor.compress(
        {"weight": weight, "weight_scale": scale.to(layer.weight.dtype)}, scheme
    )
    yield from compressed.items()
