"""How does the optimiser update weights? AdamW, its learning-rate schedule, and its state by parameter name."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from rl.config.experiment import ExperimentConfig
from rl.learner.stored_moments import MOMENTS, StoredMomentsAdamW

STATE = ("step", *MOMENTS)


def learning_rate(num_updates: int, config: ExperimentConfig) -> float:
    """The rate of the update that follows `num_updates` earlier ones.

    It rises linearly to its peak at update `warmup_steps`; linear and cosine then fall so that 0 would be reached right
    after update `train.num_steps`. No update is wasted on a rate of 0.
    """
    learner, num_steps = config.learner, config.train.num_steps
    if num_updates < learner.warmup_steps:
        return learner.learning_rate * (num_updates + 1) / learner.warmup_steps
    progress = min(1.0, (num_updates - learner.warmup_steps) / max(1, num_steps - learner.warmup_steps))
    match learner.schedule:
        case "constant":
            factor = 1.0
        case "linear":
            factor = 1.0 - progress
        case "cosine":
            factor = 0.5 * (1.0 + math.cos(math.pi * progress))
    return learner.learning_rate * factor


def make_optimizer(model: nn.Module, config: ExperimentConfig) -> torch.optim.Optimizer:
    """AdamW over all parameters that train; weight decay on matrices, not on norms, biases and Mamba's A, D, dt."""
    learner = config.learner
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": learner.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    rate, betas = learner.learning_rate, (learner.beta1, learner.beta2)
    if learner.moments == "float32" and not learner.offload_moments:
        return torch.optim.AdamW(groups, lr=rate, betas=betas, fused=True)
    dtype = getattr(torch, learner.moments)
    return StoredMomentsAdamW(
        groups, lr=rate, betas=betas, dtype=dtype, offload=learner.offload_moments, seed=config.seed
    )


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """AdamW's state as `<parameter name>.<moment>`; parameters that were never updated have none."""
    return {
        f"{name}.{moment}": optimizer.state[parameter][moment]
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state
        for moment in STATE
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Replace AdamW's state by what `optimizer_tensors` gave."""
    optimizer.state.clear()
    kept = optimizer.kept if isinstance(optimizer, StoredMomentsAdamW) else None
    for name, parameter in model.named_parameters():
        if f"{name}.{STATE[0]}" in tensors:
            state = {moment: tensors[f"{name}.{moment}"] for moment in STATE}
            optimizer.state[parameter] = state | {moment: kept(state[moment]) for moment in MOMENTS if kept}
