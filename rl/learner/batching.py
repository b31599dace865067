"""How are training rows grouped into micro-batches?

Rows are sorted by length and cut into micro-batches with a bounded number of tokens, padding included. The loss is
divided by the number of loss tokens in the whole step, so the cut does not change the gradient (except rounding).
"""

from collections.abc import Sequence

import numpy as np
import torch

from rl.data_types import Batch, Sample


class SampleTooLongError(ValueError):
    """A row does not fit into a micro-batch."""


def make_batches(samples: Sequence[Sample], tokens_per_micro_batch: int, pad_id: int) -> list[Batch]:
    """Cut a step's rows into micro-batches with rows x longest row <= `tokens_per_micro_batch`.

    The longest rows come first (memory runs out at once or never); equally long rows keep their order, so equal samples
    give equal batches. Raises `SampleTooLongError` for a row that is longer than a micro-batch.
    """
    num_loss_tokens = sum(int(np.count_nonzero(sample.tokens.sampled)) for sample in samples)
    batches: list[Batch] = []
    rows: list[Sample] = []
    for sample in sorted(samples, key=lambda sample: -len(sample.tokens)):
        if len(sample.tokens) > tokens_per_micro_batch:
            raise SampleTooLongError(
                f"a row of {sample.env_id!r} has {len(sample.tokens)} tokens, learner.tokens_per_micro_batch is"
                f" {tokens_per_micro_batch}: raise it, or lower policy.max_tokens"
            )
        if rows and (len(rows) + 1) * len(rows[0].tokens) > tokens_per_micro_batch:
            batches.append(_pad(rows, pad_id, num_loss_tokens))
            rows = []
        rows.append(sample)
    if rows:
        batches.append(_pad(rows, pad_id, num_loss_tokens))
    return batches


def _pad(rows: Sequence[Sample], pad_id: int, num_loss_tokens: int) -> Batch:
    """Stack rows, longest first, padded on the right."""
    shape = (len(rows), len(rows[0].tokens))
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
        advantages_BT[b, :num_tokens] = row.advantage
        for name, column in row.tokens.columns.items():
            columns[name][b, :num_tokens] = column
    return Batch(
        token_ids_BT=torch.from_numpy(token_ids_BT),
        attention_mask_BT=torch.from_numpy(attention_mask_BT),
        loss_mask_BT=torch.from_numpy(loss_mask_BT),
        columns={name: torch.from_numpy(column) for name, column in columns.items()},
        advantages_BT=torch.from_numpy(advantages_BT),
        env_ids=tuple(row.env_id for row in rows),
        num_loss_tokens=num_loss_tokens,
    )


def to_device(batch: Batch, device: torch.device) -> Batch:
    return Batch(
        token_ids_BT=batch.token_ids_BT.to(device),
        attention_mask_BT=batch.attention_mask_BT.to(device),
        loss_mask_BT=batch.loss_mask_BT.to(device),
        columns={name: column.to(device) for name, column in batch.columns.items()},
        advantages_BT=batch.advantages_BT.to(device),
        env_ids=batch.env_ids,
        num_loss_tokens=batch.num_loss_tokens,
    )
