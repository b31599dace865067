"""What does a rank of the learner hold in memory?"""

import torch
from torch.optim import Optimizer
from transformers import PreTrainedModel

from rl.process_memory import MIB, resident_mib
from rl.ranks import local


def memory_mib(model: PreTrainedModel, optimizer: Optimizer) -> dict[str, float]:
    """The whole `process`, and this rank's slices of the `weights`, their `gradients` during an update and `moments`.

    On a GPU, also what PyTorch has allocated there at most (`card`).
    """
    weights = list(model.parameters())
    parts = {
        "weights": weights,
        "gradients": [weight for weight in weights if weight.requires_grad],
        "moments": [one for state in optimizer.state.values() for one in state.values()],
    }
    sizes = {name: sum(local(one).nbytes for one in tensors) / MIB for name, tensors in parts.items()}
    if model.device.type == "cuda":
        sizes["card"] = torch.cuda.max_memory_allocated() / MIB
    return {"process": resident_mib(), **sizes}
