"""How do the nodes of a prefix tree attend to the nodes before them?

transformers calls this attention by its name in place of its own (`AttentionInterface`), so it serves every policy
whose attention layers go through there. Keys and values of a prefix are computed once; each row looks up those it sees.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rl.prefix_tree import Lookup, PrefixTree, Sequences, taken

NAME = "prefix_tree"
MOST_KEYS = 512
"""Longer rows go through torch's fused attention, which keeps no weights for the gradient. For shorter ones plain
matrix products are quicker on CPUs."""
MOST_FLASH = 256
"""Largest size of a head that FlashAttention takes."""


class PrefixTreeError(ValueError):
    """A policy's attention needs what this one does not have."""


def tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    prefix_tree: PrefixTree | None = None,
    sliding_window: int | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """Attention of all nodes: query [1, heads, N, D], key and value [1, key heads, N, D]; returns [1, N, heads, D].

    Without a tree, torch's attention of padded rows. Raises `PrefixTreeError` if the policy asks for more than a
    window.
    """
    if prefix_tree is None:  # padded rows
        how = {"dropout": dropout, "scaling": scaling, "sliding_window": sliding_window, **more}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **how)
    asked = [name for name in ("softcap", "s_aux", "position_bias") if more.get(name) is not None]
    if asked or dropout:
        raise PrefixTreeError(f"{type(module).__name__} needs {' and '.join(asked) or 'dropout'}, which trees have not")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    queries, keys, values = (one[0].transpose(0, 1) for one in (query, key, value))
    if _suits_flash(queries, values):
        return _flash(queries, keys, values, prefix_tree.sequences, scale, sliding_window)[None], None
    parts = []
    for lookup in prefix_tree.lookups:
        attend = _products if queries.is_cpu and lookup.keys_BK.shape[1] <= MOST_KEYS else _fused
        out_BQHD = attend(queries, keys, values, lookup, scale, sliding_window)
        parts.append(out_BQHD.flatten(0, 1))
    return taken(torch.cat(parts), prefix_tree.answers_N)[None], None


def _products(
    queries: Tensor, keys: Tensor, values: Tensor, lookup: Lookup, scale: float, window: int | None
) -> Tensor:
    """By matrix products, with the softmax in float32. Heads that share a key are rows of one product."""
    num_rows, num_queries = lookup.queries_BQ.shape
    num_key_heads = keys.shape[1]
    shared = queries.shape[1] // num_key_heads
    q = taken(queries, lookup.queries_BQ).unflatten(2, (num_key_heads, shared))
    q = q.permute(0, 2, 3, 1, 4).reshape(num_rows * num_key_heads, shared * num_queries, -1)
    k = taken(keys, lookup.keys_BK).transpose(1, 2).flatten(0, 1)
    v = taken(values, lookup.keys_BK).transpose(1, 2).flatten(0, 1)
    scores = (q @ k.transpose(1, 2)).view(num_rows, num_key_heads * shared, num_queries, -1)
    hidden = ~lookup.mask_BQK(window)[:, None]
    weights = (scores.float() * scale).masked_fill(hidden, -torch.inf).softmax(dim=-1).to(v.dtype)
    out = weights.view(num_rows * num_key_heads, shared * num_queries, -1) @ v
    out = out.view(num_rows, num_key_heads, shared, num_queries, -1).permute(0, 3, 1, 2, 4)
    return out.reshape(num_rows, num_queries, num_key_heads * shared, -1)


def _fused(queries: Tensor, keys: Tensor, values: Tensor, lookup: Lookup, scale: float, window: int | None) -> Tensor:
    q, k, v = (
        taken(nodes, places).transpose(1, 2)
        for nodes, places in ((queries, lookup.queries_BQ), (keys, lookup.keys_BK), (values, lookup.keys_BK))
    )
    if q.is_cuda:  # where only the kernel that keeps all weights takes heads that share a key and a mask
        k, v = (one.repeat_interleave(q.shape[1] // one.shape[1], dim=1) for one in (k, v))
    mask = lookup.mask_BQK(window)[:, None]
    out = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=not q.is_cuda)
    return out.transpose(1, 2)


def _suits_flash(queries: Tensor, values: Tensor) -> bool:
    """Whether FlashAttention takes these: sequences without padding, masks without a tensor."""
    is_half = queries.dtype in (torch.bfloat16, torch.float16)
    return queries.is_cuda and is_half and queries.shape[-1] == values.shape[-1] <= MOST_FLASH


def _flash(queries: Tensor, keys: Tensor, values: Tensor, rows: Sequences, scale: float, window: int | None) -> Tensor:
    """By FlashAttention (https://arxiv.org/abs/2307.08691). Its causal mask lets the last query of a row see all of
    the row's keys, and each query before it one key less.
    """
    if len(rows.keys_K) > len(keys):  # else nothing is shared: a row's keys are its queries
        keys, values = taken(keys, rows.keys_K), taken(values, rows.keys_K)
    return varlen_attn(
        queries.contiguous(),
        keys.contiguous(),
        values.contiguous(),
        rows.query_ends,
        rows.key_ends,
        rows.most_queries,
        rows.most_keys,
        scale=scale,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=True,
    )  # type: ignore[return-value]


AttentionInterface.register(NAME, tree_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
