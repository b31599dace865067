"""Each step's rows are those that the seed says; where no padding is computed, they fill micro-batches by best fit."""

import math

import numpy as np
import pytest

from sft.data import Row
from sft.micro_batches import MicroBatches, best_fit, even_fit, training_order


def rows_of(lengths: list[int]) -> list[Row]:
    return [Row((0,) * length, (0,) * length) for length in lengths]


def flat(steps: list[MicroBatches]) -> list[int]:
    return [row for step in steps for cut in step for row in cut]


def test_each_row_is_trained_once_an_epoch_and_padded_steps_are_sorted_by_length() -> None:
    lengths = [(7 * place) % 12 + 1 for place in range(12)]
    rows = rows_of(lengths)
    steps = training_order(rows, num_steps=7, batch_size=4, seed=0)
    order = flat(steps)
    assert len(order) == 28
    assert sorted(order[:12]) == sorted(order[12:24]) == list(range(12))
    for (cut,) in steps:  # rows this short are not worth a second pass
        in_step = [lengths[index] for index in cut]
        assert in_step == sorted(in_step)
    assert steps == training_order(rows, num_steps=7, batch_size=4, seed=0)
    assert order != flat(training_order(rows, num_steps=7, batch_size=4, seed=1))


def test_padded_steps_of_uneven_length_are_cut_where_the_padding_saved_is_worth_it() -> None:
    (step,) = training_order(rows_of([50, 50, 50, 400]), num_steps=1, batch_size=4, seed=0)
    # one pass: 4 x 400 + 100 = 1700; two: 2 x 50 + 2 x 400 + 200 = 1100; four: 550 + 400 = 950
    assert len(step) == 4


def test_best_fit_by_hand() -> None:
    # 6 opens one, 5 another; 4 fits the first best, 3 the second, 2 too, and 1 needs a third
    assert best_fit([5, 1, 3, 6, 2, 4], 10) == [[3, 5], [0, 2, 4], [1]]
    # 4 would go to the first micro-batch with room, the one of 5, by first fit; then 5 has none
    assert best_fit([5, 6, 4, 5], 10) == [[1, 2], [0, 3]]
    assert best_fit([12, 3], 10) == [[0], [1]]  # it does not fit, and cannot be cut


@pytest.mark.slow
def test_packs_are_as_many_as_those_of_trl() -> None:
    from datasets import Dataset
    from trl.data_utils import pack_dataset

    rng = np.random.default_rng(0)
    for most in (256, 512, 1024):
        lengths = np.minimum(rng.lognormal(4.5, 0.8, size=200).astype(int) + 1, 256).tolist()
        packed = pack_dataset(Dataset.from_dict({"input_ids": [[0] * n for n in lengths]}), most, "bfd")
        assert sorted(map(sorted, packed["seq_lengths"])) == sorted(
            sorted(lengths[place] for place in cut) for cut in best_fit(lengths, most)
        )


def test_micro_batches_are_as_few_as_best_fit_needs_and_about_equally_large() -> None:
    rows = rows_of([50, 50, 50, 400])

    def cuts(most: int, num_ranks: int = 1) -> list[list[int]]:
        (step,) = training_order(rows, 1, 4, seed=0, num_ranks=num_ranks, tokens_per_micro_batch=most)
        return [sorted(len(rows[index]) for index in cut) for cut in step]

    assert cuts(550) == [[50, 50, 50, 400]]
    assert cuts(549) == cuts(400) == [[400], [50, 50, 50]]  # equally many rows each would be 450, or four passes
    assert cuts(100) == [[400], [50, 50], [50]]
    assert cuts(550, num_ranks=2) == [[400], [50, 50, 50]]
    assert cuts(550, num_ranks=4) == [[400], [50], [50], [50]]
    assert [sum(cut) for cut in cuts_of([10, 20, 30, 40, 50, 60, 70, 80], 4)] == [90] * 4


def cuts_of(lengths: list[int], num: int) -> list[list[int]]:
    return [[lengths[place] for place in cut] for cut in even_fit(lengths, num, sum(lengths))]


def test_lengths_as_conversations_have_them_need_a_quarter_of_the_passes_of_equally_many_rows() -> None:
    """Log-normal, in micro-batches that just hold the longest row: equally many rows could only stand alone, 32."""
    lengths = np.minimum(np.random.default_rng(0).lognormal(5.5, 0.8, size=640).astype(int) + 1, 2048).tolist()
    rows, most = rows_of(lengths), max(lengths)
    steps = training_order(rows, 20, 32, seed=0, tokens_per_micro_batch=most)
    assert sorted(flat(steps)) == list(range(640))
    sizes = [[sum(lengths[row] for row in cut) for cut in step] for step in steps]
    fewest = max(math.ceil(sum(step) / most) for step in sizes)  # whatever the cut
    assert {len(step) for step in steps} == {fewest} == {8}
    assert all(size == sorted(size, reverse=True) and max(size) <= most for size in sizes)


@pytest.mark.parametrize("seed", range(20))
def test_any_lengths_fill_as_many_micro_batches_as_asked_within_the_limit(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 100, size=int(rng.integers(1, 40))).tolist()
    num = len(best_fit(lengths, 100))
    for more in (num, min(num + 3, len(lengths))):
        cuts = even_fit(lengths, more, 100)
        assert len(cuts) == more and all(cuts)
        assert sorted(place for cut in cuts for place in cut) == list(range(len(lengths)))
        assert max(sum(lengths[place] for place in cut) for cut in cuts) <= 100


def test_ranks_take_equal_shares_of_the_same_rows() -> None:
    rows = rows_of([length for length in (10, 20, 300, 400) for _ in range(4)])
    alone = training_order(rows, 3, 8, seed=0)
    for most in (None, 800):
        shared = training_order(rows, 3, 8, seed=0, num_ranks=2, tokens_per_micro_batch=most)
        assert len({len(step) for step in shared}) == 1 and len(shared[0]) % 2 == 0
        for step, whole in zip(shared, alone, strict=True):  # what is trained does not depend on the ranks
            assert sorted(flat([step])) == sorted(flat([whole]))
    assert flat(training_order(rows, 3, 8, seed=0, num_ranks=2)) == flat(alone)
    assert len(training_order(rows, 1, 8, seed=0, num_ranks=8)[0]) == 8
