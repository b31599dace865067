"""How do Mamba-2 layers go through the nodes of a prefix tree?

Projections, gate and norm see each node once. The convolution looks at the nodes before each node. The scan goes
through the openings that rows share (trunks) first; each row's rest (branch) starts from the state that its opening
leaves. Openings are padded on the left, where a state of 0 stays 0 whatever the padding's time step is.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHMamba2Mixer, mamba2_chunk_scan

from rl.prefix_tree import PrefixTree


def mix_trees(model: PreTrainedModel) -> None:
    """From now on the Mamba-2 layers of NemotronH take trees, and rows as before."""
    for module in model.modules():
        if isinstance(module, NemotronHMamba2Mixer):
            module.forward = partial(_forward, module, module.forward)  # type: ignore[method-assign]


def _forward(
    mixer: Any,
    rows_forward: Callable[..., Tensor],
    hidden_states: Tensor,
    *inputs: Any,
    prefix_tree: PrefixTree | None = None,
    **more: Any,
) -> Tensor:
    if prefix_tree is None:
        return rows_forward(hidden_states, *inputs, **more)
    projected_ND = mixer.in_proj(hidden_states[0])
    sizes = [mixer.intermediate_size, mixer.conv_dim, mixer.num_heads]
    gate_ND, mixed_ND, steps_NH = projected_ND.split(sizes, dim=-1)
    mixed_ND = mixer.act(_convolved(mixed_ND, mixer.conv1d, prefix_tree))
    scanned_ND = _scanned(mixer, mixed_ND, steps_NH, prefix_tree)
    return mixer.out_proj(mixer.norm(scanned_ND, gate_ND).to(hidden_states.dtype))[None]


def _convolved(values_ND: Tensor, convolution: nn.Conv1d, tree: PrefixTree) -> Tensor:
    """Causal, over each node and those before it; 0 before the first. Summed in float32, as convolutions are."""
    weights_KD = convolution.weight.squeeze(1).t().float()
    padded = functional.pad(values_ND, (0, 0, 0, 1))
    before_NK = tree.window_NK(len(weights_KD))
    total_ND = (functional.embedding(before_NK, padded).float() * weights_KD).sum(dim=1)
    if convolution.bias is not None:
        total_ND = total_ND + convolution.bias.float()
    return total_ND.to(values_ND.dtype)


def _scanned(mixer: Any, mixed_ND: Tensor, steps_NH: Tensor, tree: PrefixTree) -> Tensor:
    """The outputs of the scan [N, heads x head size], in float32 or the inputs' type, as the scan has them."""
    padded = functional.pad(torch.cat([mixed_ND, steps_NH], dim=-1), (0, 0, 0, 1))
    scan = partial(_scan, mixer)
    states = None
    parts = []
    layout = tree.scan
    if layout.trunks_CT.numel():
        out, states = scan(functional.embedding(layout.trunks_CT, padded), None)
        parts.append(out.flatten(0, 1))
        # A row without a shared opening starts from 0.
        states = functional.pad(states.flatten(1), (0, 0, 0, 1)).unflatten(1, states.shape[1:])[layout.trunk_of_B]
    if layout.branches_BT.numel():
        out, _ = scan(functional.embedding(layout.branches_BT, padded), states)
        parts.append(out.flatten(0, 1))
    return functional.embedding(layout.scanned_N, torch.cat(parts).flatten(1))


def _scan(mixer: Any, padded_BTD: Tensor, states: Tensor | None) -> tuple[Tensor, Tensor]:
    num_rows, length, _ = padded_BTD.shape
    size = mixer.n_groups * mixer.ssm_state_size
    x, b, c, steps = padded_BTD.split([mixer.intermediate_size, size, size, mixer.num_heads], dim=-1)
    return mamba2_chunk_scan(
        x.view(num_rows, length, mixer.num_heads, mixer.head_dim),
        steps,
        -torch.exp(mixer.A_log.float()),
        b.view(num_rows, length, mixer.n_groups, mixer.ssm_state_size),
        c.view(num_rows, length, mixer.n_groups, mixer.ssm_state_size),
        chunk_size=mixer.chunk_size,
        D=mixer.D,
        z=None,
        return_final_states=True,
        dt_bias=mixer.dt_bias,
        dt_softplus=True,
        initial_states=states,
        dt_limit=mixer.time_step_limit,
    )
