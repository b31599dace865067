"""Batching: bounded micro-batches, nothing lost, one denominator."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rl.data_types import Sample
from rl.learner.batching import SampleTooLongError, make_batches
from rl.ranks import Ranks
from rl.tokens import Tokens

PAD = 99


def make_sample(num_tokens, first=0, advantage=1.0):
    num_replied = num_tokens - 1
    columns = {"logprob": [-0.5] * num_replied, "version": [3] * num_replied}
    reply = Tokens.make(range(first + 1, first + num_tokens), [True] * num_replied, columns)
    return Sample("math/Arithmetic-v0", Tokens.joined([Tokens.unsampled([first]), reply]), advantage)


def test_rows_are_sorted_padded_on_the_right_and_share_one_denominator():
    batches = make_batches([make_sample(2), make_sample(4, first=10, advantage=-2.0), make_sample(3)], 8, PAD)
    first, second = batches
    assert first.token_ids_BT.tolist() == [[10, 11, 12, 13], [0, 1, 2, PAD]]
    assert first.attention_mask_BT.tolist() == [[True] * 4, [True, True, True, False]]
    assert first.loss_mask_BT.tolist() == [[False, True, True, True], [False, True, True, False]]
    assert first.columns["logprob"].tolist() == [[0.0, -0.5, -0.5, -0.5], [0.0, -0.5, -0.5, 0.0]]
    assert first.columns["version"].tolist() == [[0, 3, 3, 3], [0, 3, 3, 0]]
    assert first.env_ids == ("math/Arithmetic-v0",) * 2
    assert first.advantages_BT.tolist() == [[-2.0] * 4, [1.0, 1.0, 1.0, 0.0]]
    assert second.token_ids_BT.tolist() == [[0, 1]]
    assert first.num_loss_tokens == second.num_loss_tokens == 3 + 2 + 1


def test_types_are_those_of_the_contract():
    (batch,) = make_batches([make_sample(3)], 8, PAD)
    assert batch.token_ids_BT.dtype == torch.int64
    assert batch.attention_mask_BT.dtype == batch.loss_mask_BT.dtype == torch.bool
    assert batch.columns["logprob"].dtype == batch.advantages_BT.dtype == torch.float32


def test_equally_long_rows_keep_their_order():
    (batch,) = make_batches([make_sample(2, first=first) for first in (5, 3, 8)], 100, PAD)
    assert batch.token_ids_BT[:, 0].tolist() == [5, 3, 8]


def test_no_samples_give_no_batches():
    assert make_batches([], 8, PAD) == []


def test_a_row_longer_than_a_micro_batch_is_an_error_that_names_the_key():
    with pytest.raises(SampleTooLongError, match=r"9 tokens, learner\.tokens_per_micro_batch is 8"):
        make_batches([make_sample(9)], 8, PAD)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=20), st.integers(1, 5))
def test_micro_batches_are_dealt_to_ranks_in_turn_and_filled_up(lengths, num):
    samples = [make_sample(length, first=100 * index) for index, length in enumerate(lengths)]
    alone = make_batches(samples, 24, pad_id=-1)
    dealt = [make_batches(samples, 24, -1, Ranks(rank, num)) for rank in range(num)]
    assert {len(batches) for batches in dealt} == {-(-len(alone) // num)}
    in_turn = [batch for turn in zip(*dealt, strict=True) for batch in turn]
    assert [batch.token_ids_BT.tolist() for batch in in_turn[: len(alone)]] == [
        batch.token_ids_BT.tolist() for batch in alone
    ]
    fillers = in_turn[len(alone) :]
    assert len(fillers) < num and not any(batch.env_ids or batch.advantages_BT.any() for batch in fillers)
    assert {batch.num_loss_tokens for batch in in_turn} == {alone[0].num_loss_tokens}


@given(st.lists(st.integers(1, 12), max_size=20), st.integers(12, 40))
def test_every_row_is_in_exactly_one_batch_and_no_batch_is_too_big(lengths, tokens_per_micro_batch):
    samples = [make_sample(length, first=100 * index) for index, length in enumerate(lengths)]
    batches = make_batches(samples, tokens_per_micro_batch, pad_id=-1)
    rows = []
    for batch in batches:
        assert batch.token_ids_BT.numel() <= tokens_per_micro_batch
        for token_ids, attention_mask in zip(batch.token_ids_BT, batch.attention_mask_BT, strict=True):
            rows.append(tuple(token_ids[attention_mask].tolist()))
            assert (token_ids[~attention_mask] == -1).all()
    assert sorted(rows) == sorted(tuple(sample.tokens.ids.tolist()) for sample in samples)
    assert sum(int(batch.loss_mask_BT.sum()) for batch in batches) == sum(length - 1 for length in lengths)
