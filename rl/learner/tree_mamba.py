"""How do Mamba-2 layers go through the nodes of a prefix tree?

Projections, gate and norm see each node once. The convolution looks at the nodes before each node. The scan goes
through the tree's segments; each starts from the state that the segment before it left. Padding has a time step of 0,
which leaves a state as it is: the step is bounded from below, so the padding is put in after that.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHMamba2Mixer, mamba2_chunk_scan

from rl.prefix_tree import PrefixTree, taken


def mix_trees(model: PreTrainedModel) -> None:
    """From now on the Mamba-2 layers of NemotronH take trees, and rows as before."""
    for module in model.modules():
        if isinstance(module, NemotronHMamba2Mixer):
            module.forward = partial(_forward, module, module.forward)  # type: ignore[method-assign]


def other_state(model: PreTrainedModel) -> str:
    """What carries a state from token to token and takes no trees, in words; empty if nothing does.

    It would run over the row of nodes, from one sample's tokens into another's: convolutions, recurrent layers, linear
    attention.
    """
    mixers = [module for module in model.modules() if isinstance(module, NemotronHMamba2Mixer)]
    known = {part for mixer in mixers for part in mixer.modules()}
    for name, module in model.named_modules():
        if module not in known and (isinstance(module, nn.Conv1d | nn.RNNBase) or hasattr(module, "A_log")):
            return f"{name} ({type(module).__name__})"
    layers = getattr(model.config.get_text_config(), "layer_types", None) or ()
    if not mixers and (model._is_stateful or "linear_attention" in layers):
        return type(model).__name__
    return ""


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
    total_ND = (taken(padded, before_NK).float() * weights_KD).sum(dim=1)
    if convolution.bias is not None:
        total_ND = total_ND + convolution.bias.float()
    return total_ND.to(values_ND.dtype)


def _scanned(mixer: Any, mixed_ND: Tensor, steps_NH: Tensor, tree: PrefixTree) -> Tensor:
    """The outputs of the scan [N, heads x head size], in the type that the scan gives them."""
    steps_NH = functional.softplus(steps_NH + mixer.dt_bias.to(steps_NH.dtype)).clamp(*mixer.time_step_limit)
    padded = functional.pad(torch.cat([mixed_ND, steps_NH], dim=-1), (0, 0, 0, 1))
    decay_H = -torch.exp(mixer.A_log.float())
    state_size = (mixer.num_heads, mixer.head_dim, mixer.ssm_state_size)
    states = torch.zeros(1, *state_size, device=padded.device)
    outputs = []
    for part in tree.segments:
        before = taken(states, part.befores_S)
        output, after = _scan(mixer, taken(padded, part.nodes_SL), decay_H, before)
        outputs.append(output.flatten(0, 1).flatten(1))
        states = torch.cat([states, after.to(states.dtype)])
    return taken(torch.cat(outputs), tree.scanned_N)


def _scan(mixer: Any, padded_SLD: Tensor, decay_H: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
    shape = padded_SLD.shape[:2]
    size = mixer.n_groups * mixer.ssm_state_size
    x, b, c, steps = padded_SLD.split([mixer.intermediate_size, size, size, mixer.num_heads], dim=-1)
    return mamba2_chunk_scan(
        x.unflatten(-1, (mixer.num_heads, mixer.head_dim)),
        steps,
        decay_H,
        b.view(*shape, mixer.n_groups, mixer.ssm_state_size),
        c.view(*shape, mixer.n_groups, mixer.ssm_state_size),
        chunk_size=mixer.chunk_size,
        D=mixer.D,
        z=None,
        return_final_states=True,
        initial_states=states,
    )
