"""How are a policy's layers compiled? Kernels of torch's compiler in place of one for each operation (`torch.compile`).

Operations between matrix products then read and write a GPU's memory once. Layers alike share kernels, and those serve
rows of any number and length.
"""

import torch
from transformers import PreTrainedModel

from envs.errors import InputError
from rl.precision.nvfp4 import can_compile


class CompilerError(InputError):
    """The machine of the learner cannot compile."""


def compile_layers(model: PreTrainedModel) -> int:
    """From now on a layer's `forward` is compiled when it is first called. Returns the number of such layers.

    Only layers of matrices and vectors: experts and convolutions have weights of three axes. The compiler cannot derive
    the gradient of grouped products everywhere, and takes a Mamba scan apart into thousands of operations.

    Raises `CompilerError` on a GPU whose machine cannot compile.
    """
    if model.device.type == "cuda" and not can_compile():
        raise CompilerError(
            "learner.compile: torch's compiler for GPUs needs Triton and a C compiler (gcc, clang or $CC), and the"
            " learner's machine lacks one: install it, or remove the key"
        )
    layers = [
        layer
        for layer in getattr(model.base_model, "layers", ())
        if all(parameter.dim() <= 2 for parameter in layer.parameters())
    ]
    for layer in layers:
        layer.forward = torch.compile(layer.forward, dynamic=True)
    return len(layers)
