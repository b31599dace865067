"""Which weights of a checkpoint get an adapter? Told from the headers of its files."""

import re
from collections.abc import Mapping
from pathlib import Path

from rl.config.checkpoint_files import tensor_shapes
from rl.config.learner import AdapterConfig

EXPERT = re.compile(r"\.experts\.(\d+\.)?")
NO_LINEAR_LAYERS = ("lm_head", "embed_out", "embed_tokens", "embeddings", "wte", "embed_in", "conv1d")
"""Last parts of names: heads, embeddings and convolutions."""


def adapted_shapes(policy: Path, adapter: AdapterConfig) -> Mapping[str, tuple[int, ...]]:
    """Shape of each matrix that the targets name, by the name of its layer in the checkpoint, experts included.

    Raises `CheckpointFileError`.
    """
    pattern = re.compile(adapter.pattern)
    layers = {
        name.removesuffix(".weight"): shape
        for name, shape in tensor_shapes(policy).items()
        if name.endswith(".weight") and len(shape) >= 2
    }
    return {name: shape for name, shape in layers.items() if pattern.fullmatch(name)}


def num_experts(policy: Path) -> int:
    """Routed experts of a layer, from the headers of the checkpoint; 0 without any. Raises `CheckpointFileError`."""
    numbers = [0]
    for name, shape in tensor_shapes(policy).items():
        if found := EXPERT.search(name):
            numbers.append(int(found[1].rstrip(".")) + 1 if found[1] else shape[0])
    return max(numbers)


def is_expert(layer: str) -> bool:
    """Whether this is a routed expert's layer: transformers stacks them in tensors that cannot have an adapter."""
    return EXPERT.search(layer) is not None
