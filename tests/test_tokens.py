"""Tokens: arrays of one length that nobody changes, and that survive any transfer."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl.tokens import OUT_OF_BAND_TOKENS, Tokens, TokensError


def make_tokens(num: int, **columns) -> Tokens:
    named = {"logprob": [-0.5] * num, "version": [3] * num, **columns}
    return Tokens.make(range(num), [True] * num, named)


def test_types_are_those_of_the_contract():
    tokens = make_tokens(2)
    assert tokens.ids.dtype == np.int32
    assert tokens.sampled.dtype == np.bool_
    assert tokens.columns["logprob"].dtype == np.float32
    assert tokens.columns["version"].dtype == np.int32


@pytest.mark.parametrize("num", [2, OUT_OF_BAND_TOKENS])
def test_nobody_can_write_to_an_array_of_tokens(num):
    joined = Tokens.joined([Tokens.unsampled([1]), make_tokens(num)])
    for tokens in (joined, *(pickle.loads(pickle.dumps(joined, protocol)) for protocol in (4, 5))):
        assert tokens == joined
        for array in (tokens.ids, tokens.sampled, *tokens.columns.values()):
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 0


def test_long_arrays_are_pickled_out_of_the_stream():
    tokens = make_tokens(OUT_OF_BAND_TOKENS)
    buffers: list[pickle.PickleBuffer] = []
    stream = pickle.dumps(tokens, 5, buffer_callback=buffers.append)
    assert len(buffers) == 4
    assert pickle.loads(stream, buffers=buffers) == tokens


def test_arrays_of_different_lengths_are_refused():
    with pytest.raises(TokensError, match="ids 2, sampled 2, logprob 1"):
        Tokens.make([1, 2], [True, True], {"logprob": [-0.5]})


def test_a_column_is_zero_where_a_part_lacks_it():
    experts = np.array([[[1, 2]], [[3, 4]]], np.uint8)
    joined = Tokens.joined([Tokens.unsampled([9]), make_tokens(2, experts=experts)])
    assert joined.ids.tolist() == [9, 0, 1]
    assert joined.sampled.tolist() == [False, True, True]
    assert joined.columns["logprob"].tolist() == [0.0, -0.5, -0.5]
    assert joined.columns["experts"].tolist() == [[[0, 0]], [[1, 2]], [[3, 4]]]


@given(st.lists(st.tuples(st.integers(0, 2**31 - 1), st.booleans(), st.floats(-100, 0, width=32)), max_size=20))
def test_tokens_survive_pickling_whole(rows):
    ids, sampled, logprobs = zip(*rows, strict=True) if rows else ((), (), ())
    experts = np.arange(len(rows) * 6, dtype=np.uint16).reshape(len(rows), 2, 3)
    tokens = Tokens.make(ids, sampled, {"logprob": logprobs, "experts": experts})
    assert pickle.loads(pickle.dumps(tokens)) == tokens


def test_tokens_differ_where_any_column_does():
    assert make_tokens(2) == make_tokens(2)
    assert make_tokens(2) != make_tokens(2, logprob=[-0.5, -0.25])
    assert make_tokens(2) != make_tokens(2, further=[0, 0])
