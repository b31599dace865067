"""How are training rows grouped into micro-batches?

Rows are sorted by length and cut into micro-batches with a bounded number of tokens, padding included; or, if prefixes
are computed once, rows that begin alike stand together, and each prefix counts once. The loss is divided by the number
of loss tokens in the whole step, so the cut does not change the gradient (except rounding).
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from rl.data_types import Batch, Sample
from rl.prefix_tree import dictionary_order, num_shared, tree_of
from rl.ranks import ALONE, Ranks
from rl.tokens import ADVANTAGE, Tokens

Totals = tuple[int, int]
"""The loss tokens and the rows of a step."""


class SampleTooLongError(ValueError):
    """A row does not fit into a micro-batch."""


def make_batches(
    samples: Sequence[Sample],
    tokens_per_micro_batch: int,
    pad_id: int,
    ranks: Ranks = ALONE,
    *,
    totals: Totals | None = None,
    shares_prefixes: bool = False,
) -> list[Batch]:
    """Cut a step's rows into micro-batches with rows x longest row <= `tokens_per_micro_batch`; those of this rank.

    `totals` are the step's, if it has other rows too. With `shares_prefixes` batches have a tree, and at most
    `tokens_per_micro_batch` nodes.
    The longest rows come first (memory runs out at once or never); equally long rows keep their order, so equal samples
    give equal batches. Micro-batches are dealt to the ranks in turn, so the cut does not depend on their number. Each
    rank must make as many passes as the others, so the last round is filled up with `filler`s. Raises
    `SampleTooLongError` for a row that is longer than a micro-batch.
    """
    if totals is None:
        totals = sum(int(np.count_nonzero(sample.tokens.sampled)) for sample in samples), len(samples)
    _check_lengths(samples, tokens_per_micro_batch)
    cuts = (_cut_by_prefixes if shares_prefixes else _cut)(samples, tokens_per_micro_batch)
    own = [_pad(rows, pad_id, totals) for rows in cuts[ranks.rank :: ranks.num]]
    num_passes = -(-len(cuts) // ranks.num)
    batches = own + [_filler(pad_id, totals)] * (num_passes - len(own))
    return [with_tree(batch) for batch in batches] if shares_prefixes else batches


def _filler(pad_id: int, totals: Totals) -> Batch:
    """A micro-batch of padding, for a rank that has fewer than others. It belongs to no environment."""
    tokens = Tokens.make([pad_id] * 2, [False, True], {})
    return replace(_pad([Sample("", tokens, 0.0)], pad_id, totals), env_ids=())


def _check_lengths(samples: Sequence[Sample], tokens_per_micro_batch: int) -> None:
    for sample in samples:
        if len(sample.tokens) > tokens_per_micro_batch:
            raise SampleTooLongError(
                f"a row of {sample.env_id!r} has {len(sample.tokens)} tokens, learner.tokens_per_micro_batch is"
                f" {tokens_per_micro_batch}: raise it, or lower policy.max_tokens"
            )


def _cut_by_prefixes(samples: Sequence[Sample], tokens_per_micro_batch: int) -> list[list[Sample]]:
    """In dictionary order, cut where another row's new tokens do not fit; the largest micro-batches first."""
    cuts: list[tuple[int, list[Sample]]] = []
    num_nodes, rows = 0, []
    for sample in sorted(samples, key=lambda sample: dictionary_order(sample.tokens.ids)):
        ids = sample.tokens.ids
        num_new = len(ids) - (num_shared(ids, rows[-1].tokens.ids) if rows else 0)
        if rows and num_nodes + num_new > tokens_per_micro_batch:
            cuts.append((num_nodes, rows))
            num_nodes, rows, num_new = 0, [], len(ids)
        num_nodes += num_new
        rows.append(sample)
    cuts += [(num_nodes, rows)] if rows else []
    return [rows for _, rows in sorted(cuts, key=lambda cut: -cut[0])]


def with_tree(batch: Batch) -> Batch:
    """The batch, with the tree of its rows' tokens."""
    lengths = batch.attention_mask_BT.sum(dim=-1).tolist()
    rows = [row[:length] for row, length in zip(batch.token_ids_BT.numpy(), lengths, strict=True)]
    return replace(batch, tree=tree_of(rows))


def _cut(samples: Sequence[Sample], tokens_per_micro_batch: int) -> list[list[Sample]]:
    cuts: list[list[Sample]] = []
    rows: list[Sample] = []
    for sample in sorted(samples, key=lambda sample: -len(sample.tokens)):
        if rows and (len(rows) + 1) * len(rows[0].tokens) > tokens_per_micro_batch:
            cuts.append(rows)
            rows = []
        rows.append(sample)
    return [*cuts, rows] if rows else cuts


def _pad(rows: Sequence[Sample], pad_id: int, totals: Totals) -> Batch:
    """Stack rows, padded on the right."""
    shape = (len(rows), max(len(row.tokens) for row in rows))
    token_ids_BT = np.full(shape, pad_id, np.int64)
    attention_mask_BT = np.zeros(shape, np.bool_)
    loss_mask_BT = np.zeros(shape, np.bool_)
    advantages_BT = np.zeros(shape, np.float32)
    likes = {name: column for row in rows for name, column in row.tokens.columns.items()}
    columns = {name: np.zeros((*shape, *like.shape[1:]), like.dtype) for name, like in likes.items()}
    for b, row in enumerate(rows):
        num_tokens = len(row.tokens)
        token_ids_BT[b, :num_tokens] = row.tokens.ids
        attention_mask_BT[b, :num_tokens] = True
        loss_mask_BT[b, :num_tokens] = row.tokens.sampled
        advantages_BT[b, :num_tokens] = row.tokens.columns.get(ADVANTAGE, row.advantage)
        for name, column in row.tokens.columns.items():
            columns[name][b, :num_tokens] = column
    return Batch(
        token_ids_BT=torch.from_numpy(token_ids_BT),
        attention_mask_BT=torch.from_numpy(attention_mask_BT),
        loss_mask_BT=torch.from_numpy(loss_mask_BT),
        columns={name: torch.from_numpy(column) for name, column in columns.items()},
        advantages_BT=torch.from_numpy(advantages_BT),
        env_ids=tuple(row.env_id for row in rows),
        num_loss_tokens=totals[0],
        num_loss_rows=totals[1],
    )


def to_device(batch: Batch, device: torch.device) -> Batch:
    return replace(
        batch,
        tree=batch.tree and batch.tree.to(device),
        token_ids_BT=batch.token_ids_BT.to(device),
        attention_mask_BT=batch.attention_mask_BT.to(device),
        loss_mask_BT=batch.loss_mask_BT.to(device),
        columns={name: column.to(device) for name, column in batch.columns.items()},
        advantages_BT=batch.advantages_BT.to(device),
    )
