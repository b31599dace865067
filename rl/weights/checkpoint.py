"""Under which names, and cut how, does a live transformers model's checkpoint hold its weights?"""

from collections.abc import Iterator
from typing import Literal

import torch
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict

_ROUTER = ".gate.weight"


def checkpoint_tensors(
    model: PreTrainedModel, dtype: Literal["float32", "bfloat16"]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield what `save_pretrained` would save, layer by layer, as views of the model's memory wherever possible.

    transformers renames weights and stacks experts when it loads a checkpoint; vLLM wants the checkpoint's names and
    one tensor an expert. Of tied weights only the one that is saved is yielded. Matrices are rounded to `dtype` one at
    a time, as the engine would. Vectors (norms, biases, Mamba's A) and routers keep their precision, for engines hold
    some of them in float32 whatever the dtype.
    """
    state = remove_tied_weights_from_state_dict(model.state_dict(), model)
    for name, tensor in revert_weight_conversion(model, state).items():
        is_rounded = tensor.dim() > 1 and tensor.is_floating_point() and not name.endswith(_ROUTER)
        yield name, tensor.to(getattr(torch, dtype)) if is_rounded else tensor
