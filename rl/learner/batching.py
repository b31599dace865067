"""Which rows go through the model together?

Rows are sorted by length and cut into micro-batches of a bounded number of padded tokens. The loss is divided by the
loss tokens of the whole step, so the cut does not change the gradient (beyond rounding).
"""

from collections.abc import Sequence

import torch

from rl.data_types import Batch, Sample


class SampleTooLongError(ValueError):
    """A row does not fit into a micro-batch."""


def make_batches(samples: Sequence[Sample], tokens_per_micro_batch: int, pad_id: int) -> list[Batch]:
    """Cut a step's rows into micro-batches with rows x longest row <= `tokens_per_micro_batch`.

    The longest rows come first (memory runs out at once or never); equally long rows keep their order, so equal samples
    give equal batches. Raises `SampleTooLongError` for a row that is longer than a micro-batch.
    """
    num_loss_tokens = sum(sum(sample.loss_mask) for sample in samples)
    batches: list[Batch] = []
    rows: list[Sample] = []
    for sample in sorted(samples, key=lambda sample: -len(sample.token_ids)):
        if len(sample.token_ids) > tokens_per_micro_batch:
            raise SampleTooLongError(
                f"a row of {sample.env_id!r} has {len(sample.token_ids)} tokens, learner.tokens_per_micro_batch is"
                f" {tokens_per_micro_batch}: raise it, or lower policy.max_tokens"
            )
        if rows and (len(rows) + 1) * len(rows[0].token_ids) > tokens_per_micro_batch:
            batches.append(_pad(rows, pad_id, num_loss_tokens))
            rows = []
        rows.append(sample)
    if rows:
        batches.append(_pad(rows, pad_id, num_loss_tokens))
    return batches


def _pad(rows: Sequence[Sample], pad_id: int, num_loss_tokens: int) -> Batch:
    """Stack rows, longest first, padded on the right."""
    shape = (len(rows), len(rows[0].token_ids))
    token_ids_BT = torch.full(shape, pad_id, dtype=torch.int64)
    attention_mask_BT = torch.zeros(shape, dtype=torch.bool)
    loss_mask_BT = torch.zeros(shape, dtype=torch.bool)
    sampler_logprobs_BT = torch.zeros(shape, dtype=torch.float32)
    advantages_BT = torch.zeros(shape, dtype=torch.float32)
    for b, row in enumerate(rows):
        num_tokens = len(row.token_ids)
        token_ids_BT[b, :num_tokens] = torch.tensor(row.token_ids)
        attention_mask_BT[b, :num_tokens] = True
        loss_mask_BT[b, :num_tokens] = torch.tensor(row.loss_mask)
        sampler_logprobs_BT[b, :num_tokens] = torch.tensor(row.sampler_logprobs)
        advantages_BT[b, :num_tokens] = row.advantage
    return Batch(
        token_ids_BT=token_ids_BT,
        attention_mask_BT=attention_mask_BT,
        loss_mask_BT=loss_mask_BT,
        sampler_logprobs_BT=sampler_logprobs_BT,
        advantages_BT=advantages_BT,
        num_loss_tokens=num_loss_tokens,
    )
