"""How does the optimiser update weights? AdamW, its learning-rate schedule, and its state by parameter name."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from rl.config.experiment import ExperimentConfig
from rl.config.learner import Schedule
from rl.learner.sharding import assert_in_slices
from rl.learner.stored_moments import MOMENTS, StoredMomentsAdamW
from rl.ranks import Ranks, local

STATE = ("step", *MOMENTS)


def learning_rate(num_updates: int, config: ExperimentConfig) -> float:
    """The rate of the update that follows `num_updates` earlier ones."""
    learner = config.learner
    return learner.learning_rate * rate_factor(
        num_updates, learner.warmup_steps, config.train.num_steps, learner.schedule
    )


def rate_factor(num_updates: int, warmup_steps: int, num_steps: int, schedule: Schedule) -> float:
    """The share of the peak rate that the update has which follows `num_updates` earlier ones.

    It rises linearly to 1 at update `warmup_steps`; linear and cosine then fall so that 0 would be reached right after
    update `num_steps`. No update is wasted on a rate of 0.
    """
    if num_updates < warmup_steps:
        return (num_updates + 1) / warmup_steps
    progress = min(1.0, (num_updates - warmup_steps) / max(1, num_steps - warmup_steps))
    match schedule:
        case "constant":
            return 1.0
        case "linear":
            return 1.0 - progress
        case "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * progress))


def make_optimizer(model: nn.Module, config: ExperimentConfig) -> torch.optim.Optimizer:
    """AdamW over all parameters that train; weight decay on matrices, not on norms, biases and Mamba's A, D, dt."""
    assert_in_slices(model)
    learner = config.learner
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    meshes = dict.fromkeys(map(_mesh, trained))  # one kernel cannot take weights that are spread in different ways
    groups = [
        {
            "params": [p for p in trained if _mesh(p) == mesh and (p.ndim >= 2) == is_matrix],
            "weight_decay": learner.weight_decay * is_matrix,
        }
        for mesh in meshes
        for is_matrix in (True, False)
    ]
    rate, betas = learner.learning_rate, (learner.beta1, learner.beta2)
    if learner.moments == "float32" and not learner.offload_moments:
        return torch.optim.AdamW(groups, lr=rate, betas=betas, fused=True)
    dtype = getattr(torch, learner.moments)
    return StoredMomentsAdamW(
        groups, lr=rate, betas=betas, dtype=dtype, offload=learner.offload_moments, seed=config.seed
    )


def _mesh(parameter: nn.Parameter) -> DeviceMesh | None:
    return parameter.device_mesh if isinstance(parameter, DTensor) else None


def clip_gradients(model: nn.Module, max_norm: float, ranks: Ranks) -> float:
    """Scale the gradients down to this L2 norm if theirs is larger. Returns their norm before.

    With several ranks it is summed in float64, and the gradients of parameters that each rank holds whole are summed
    over the ranks first.
    """
    if ranks.num == 1:
        return nn.utils.clip_grad_norm_(model.parameters(), max_norm).item()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    slices = [gradient.to_local() for gradient in gradients if isinstance(gradient, DTensor)]
    whole = [gradient for gradient in gradients if not isinstance(gradient, DTensor)]
    if whole:
        joined = ranks.sum(torch.cat([gradient.flatten() for gradient in whole]))
        for gradient, values in zip(whole, joined.split([gradient.numel() for gradient in whole]), strict=True):
            gradient.copy_(values.view_as(gradient))
    squares = ranks.sum(_squares(slices, gradients[0].device)) + _squares(whole, gradients[0].device)
    norm = squares.sqrt().item()
    if norm > max_norm:
        for gradient in (*slices, *whole):
            gradient.mul_(max_norm / (norm + 1e-6))
    return norm


def _squares(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    zero = torch.zeros((), dtype=torch.float64, device=device)
    return sum((tensor.double().square().sum() for tensor in tensors), zero)


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """AdamW's state as `<parameter name>.<moment>`; parameters that were never updated have none."""
    return {
        f"{name}.{moment}": _as_held(optimizer.state[parameter][moment], parameter)
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state
        for moment in STATE
    }


def new_optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """As `optimizer_tensors`, with zeros, and for all parameters that train."""
    dtype = optimizer.dtype if isinstance(optimizer, StoredMomentsAdamW) else torch.float32
    moments: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            zeros = (
                torch.zeros_like(local(parameter), dtype=dtype, device=held_on(optimizer, parameter)) for _ in MOMENTS
            )
            moments |= {
                f"{name}.{moment}": _as_held(new, parameter) for moment, new in zip(MOMENTS, zeros, strict=True)
            }
            moments[f"{name}.{STATE[0]}"] = torch.zeros((), device=parameter.device)
    return moments


def held_on(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> torch.device:
    """The device of this parameter's moments between two updates."""
    host = optimizer.host if isinstance(optimizer, StoredMomentsAdamW) else None
    return host or parameter.device


def _as_held(state: Tensor, parameter: nn.Parameter) -> Tensor:
    """A moment as the parameter is held; those in bfloat16 or in the CPU's memory are kept as plain slices."""
    if not isinstance(parameter, DTensor) or isinstance(state, DTensor) or not state.dim():
        return state
    return spread_as(state, parameter)


def spread_as(values: Tensor, parameter: DTensor) -> DTensor:
    """This rank's slice, on whatever device, as a part of a tensor that is spread as the parameter is."""
    mesh = parameter.device_mesh
    if values.device.type != mesh.device_type:  # else it would be moved to the card
        mesh = DeviceMesh(values.device.type, mesh.mesh, mesh_dim_names=mesh.mesh_dim_names, _init_backend=False)
    return DTensor.from_local(
        values, mesh, parameter.placements, run_check=False, shape=parameter.shape, stride=parameter.stride()
    )


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Replace AdamW's state by what `optimizer_tensors` gave."""
    optimizer.state.clear()
    kept = optimizer.kept if isinstance(optimizer, StoredMomentsAdamW) else None
    for name, parameter in model.named_parameters():
        if f"{name}.{STATE[0]}" in tensors:
            state = {moment: tensors[f"{name}.{moment}"] for moment in STATE}
            optimizer.state[parameter] = state | {moment: kept(local(state[moment])) for moment in MOMENTS if kept}
