"""How is the policy spread over the ranks of a learner?

FSDP2 (`torch.distributed.fsdp.fully_shard`, https://arxiv.org/abs/2304.11277): each rank holds a slice of every weight,
gradient and moment, and weights are whole only while a layer computes. The numbers are those of one process: weights
are rounded where `rl.learner.forward` rounds them, routers and Mamba's A stay float32, and gradients are summed in
float32, because the loss is already divided by the whole step's tokens.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
import xxhash
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.distributed.tensor_parallel import apply_expert_parallelism, replace_layer_number_by_wildcard

from rl.config.adapted import is_expert
from rl.data_types import Batch
from rl.learner.forward import batch_logprobs, check_head, decoder_inputs
from rl.learner.policy import load_policy
from rl.precision.float32_weights import ROUTER_BIAS, float32_weights
from rl.ranks import Ranks

Root = TypeVar("Root", bound=nn.Module)


class ShardedPolicy(nn.Module):
    """Decoder and head as one module, because FSDP makes weights whole only inside the forward pass of a module."""

    def __init__(self, model: PreTrainedModel, temperature: float, chunk_tokens: int) -> None:
        super().__init__()
        self.model = model
        self._temperature, self._chunk_tokens = temperature, chunk_tokens

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """As `rl.learner.forward.policy_logprobs`."""
        output = self.model.base_model(**decoder_inputs(batch))
        head = self.model.get_output_embeddings()
        assert isinstance(head, nn.Linear)
        return batch_logprobs(output.last_hidden_state, head.weight, batch, self._temperature, self._chunk_tokens)


def load_sharded_policy(
    path: Path,
    ranks: Ranks,
    device: torch.device,
    dtype: torch.dtype,
    temperature: float,
    chunk_tokens: int,
    *,
    stays_whole: bool,
) -> ShardedPolicy:
    """A checkpoint of which each rank holds its slices, to compute logprobs with. Arguments are as of `load_sharded`.

    Raises as `rl.learner.policy.load_policy` and `rl.learner.forward.check_head`.
    """

    def as_called(model: PreTrainedModel) -> ShardedPolicy:
        check_head(model)
        return ShardedPolicy(model, temperature, chunk_tokens)

    return load_sharded(path, as_called, ranks, device, dtype, stays_whole=stays_whole)


def load_sharded(
    path: Path,
    as_called: Callable[[PreTrainedModel], Root],
    ranks: Ranks,
    device: torch.device,
    dtype: torch.dtype,
    *,
    stays_whole: bool,
) -> Root:
    """A checkpoint of which each rank holds its slices, to compute in `dtype`. The names of parameters stay.

    `as_called` gives the module whose forward pass will be called: the model, or one that holds it. With `stays_whole`,
    layers stay whole from their first forward pass on, until `exchange_with` lets go of them. Parameters become
    `DTensor`s, but for Mamba's A, which each rank holds whole. Raises as `rl.learner.policy.load_policy`.
    """
    made: list[Root] = []

    def spread(model: PreTrainedModel) -> None:
        made.append(as_called(model))
        _shard(made[0], model, ranks, dtype, stays_whole=stays_whole)

    load_policy(path, spread, ranks.num)
    # FSDP also learns here where the slices are that were read, before others hold on to their memory.
    return made[0].to(device)


def _shard(root: nn.Module, model: PreTrainedModel, ranks: Ranks, dtype: torch.dtype, *, stays_whole: bool) -> None:
    names = sorted(float32_weights(model))  # all ranks must do everything in one order
    modules = dict(model.named_modules())
    owners = {name: modules[name.rpartition(".")[0]] for name in names}
    # A router is a module of float32 weights only. Mamba's A is one of several weights of its module: not sharded.
    routers = [owner for name, owner in owners.items() if name.endswith(".weight")]
    bare = {model.get_parameter(name) for name in _stay_whole(model)}
    rounded = None if dtype == torch.float32 else dtype
    experts = _deal_experts(model, ranks.expert_mesh) if ranks.expert_mesh is not None else []
    for module in experts:
        fully_shard(module, mesh=ranks.expert_mesh["efsdp"], mp_policy=_sums(rounded))  # pyright: ignore
    for router in routers:
        fully_shard(router, mesh=ranks.mesh, mp_policy=_sums(None), reshard_after_forward=False)
    layers = getattr(model.base_model, "layers", ())
    for module in (*layers, root):
        fully_shard(
            module,
            mesh=ranks.mesh,
            mp_policy=_sums(rounded),
            ignored_params=bare,
            reshard_after_forward=False if stays_whole else None,
        )
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo cannot divide


def _stay_whole(model: nn.Module) -> set[str]:
    return {name for name in float32_weights(model) if not name.endswith(".weight")}


def _deal_experts(model: PreTrainedModel, mesh: DeviceMesh) -> list[nn.Module]:
    """Give each rank along `ep` a share of every layer's experts; tokens travel to the ranks of their experts.

    Returns the modules of experts.
    """
    modules = {name: module for name, module in model.named_modules() if _stacks(module) and is_expert(f"{name}.")}
    plan = {replace_layer_number_by_wildcard(name): "ep_dispatch_experts" for name in modules}
    for name, module in modules.items():
        plan |= {replace_layer_number_by_wildcard(f"{name}.{stack}"): "grouped_gemm" for stack in _stacks(module)}
    apply_expert_parallelism(model, mesh["ep"], None, plan)  # type: ignore[arg-type]
    return list(modules.values())


def _stacks(module: nn.Module) -> list[str]:
    return [name for name, parameter in module.named_parameters(recurse=False) if parameter.dim() == 3]


def exchange_with(policy: object, *, is_last: bool) -> None:
    """Whether the backward pass that follows sums gradients over the ranks, and lets go of whole weights after it.

    Before that, each rank adds up its own gradients in float32.
    """
    if isinstance(policy, FSDPModule):
        policy.set_requires_gradient_sync(is_last)
        policy.set_reshard_after_backward(is_last)


def after_an_error(policy: object) -> None:
    """Make a sharded policy usable again after a pass that was not completed."""
    if isinstance(policy, FSDPModule):
        policy.reset_iter_state()


def into_slices(policy: object) -> None:
    """Make a sharded policy hold slices again after a pass without a gradient, which leaves some weights whole."""
    if isinstance(policy, ShardedPolicy):
        for module in policy.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


def assert_in_slices(model: nn.Module) -> None:
    """Of a sharded policy, each weight is a slice now. An optimiser of whole ones would never see a gradient of theirs:
    gradients go to the slices.
    """
    parameters = dict(model.named_parameters())
    if any(isinstance(parameter, DTensor) for parameter in parameters.values()):
        whole = [name for name in parameters.keys() - _stay_whole(model) if not isinstance(parameters[name], DTensor)]
        assert not whole, f"{len(whole)} weights are whole and would not be trained, among them {min(whole)}"


def hash_of_replicas(model: PreTrainedModel) -> str:
    """Of the parameters that train and the expert biases, as far as each rank holds the whole of them."""
    digest = xxhash.xxh3_64()
    biases = (buffer for name, buffer in model.named_buffers() if name.endswith(ROUTER_BIAS))
    for tensor in (*(p for p in model.parameters() if p.requires_grad), *biases):
        if not isinstance(tensor, DTensor):
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _sums(dtype: torch.dtype | None) -> MixedPrecisionPolicy:
    return MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
