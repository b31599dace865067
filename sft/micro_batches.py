"""Which rows does each step train, and which of them does one pass compute together, as a micro-batch?

A step takes the same rows whatever the micro-batches are, and its loss is divided by what the whole step trains: the
cut changes the gradient by rounding only. No row of a micro-batch sees another one, so a micro-batch without padding is
what other trainers call a pack.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np

from sft.data import AnyRow
from sft.mixture import drawn

MICRO_BATCHES = (1, 2, 4, 8)
TOKENS_PER_START = 100  # measured for the tiny hybrid on one core: a pass costs 10 ms, and a token 0.1 ms

MicroBatches = list[list[int]]
"""Of a step: indices of the rows of each."""


def training_order(
    rows: Sequence[AnyRow],
    num_steps: int,
    batch_size: int,
    seed: int,
    num_ranks: int = 1,
    tokens_per_micro_batch: int | None = None,
    counts: Sequence[int] | None = None,
    *,
    is_padded: bool = False,
) -> list[MicroBatches]:
    """The micro-batches of each step, in training order; all steps have equally many.

    `counts` are the rows that each source gives (`sft.mixture.rows_by_source`); None if there is one source. Each step
    takes `batch_size` random rows, each row of a source once per epoch. Whole steps of one length would need less
    padding, but each would hold one kind of task, and learning would be far slower. Ranks take micro-batches in turn,
    equally many each. If no padding is computed, `tokens_per_micro_batch` says how large micro-batches may be; they are
    as few as best fit needs. Otherwise they hold equally many rows of similar length; with `is_padded`, as many as
    `tokens_per_micro_batch` allows, padding included.
    """
    lengths = np.array([len(row) for row in rows])
    order = drawn([row.part for row in rows], counts or [num_steps * batch_size], seed)
    steps = order.reshape(num_steps, batch_size)
    steps = np.take_along_axis(steps, np.argsort(lengths[steps], axis=1, kind="stable"), axis=1)
    if tokens_per_micro_batch is not None and not is_padded:
        return _by_best_fit(steps, lengths, tokens_per_micro_batch, num_ranks)
    if tokens_per_micro_batch is not None:
        num = _fewest(lengths[steps], tokens_per_micro_batch, num_ranks)
    else:
        cuts = [cut * num_ranks for cut in MICRO_BATCHES if batch_size % (cut * num_ranks) == 0]
        num = min(cuts, key=lambda cut: _cost(lengths[steps], cut, num_ranks))
    return steps.reshape(num_steps, num, -1).tolist()


def _by_best_fit(steps: np.ndarray, lengths: np.ndarray, most: int, num_ranks: int) -> list[MicroBatches]:
    """As many micro-batches as best fit needs for the step that needs most, the largest first."""
    of_steps: list[list[int]] = lengths[steps].tolist()
    num = _num_needed(of_steps, most, num_ranks)
    return [
        [[rows[place] for place in cut] for cut in even_fit(of_step, num, most)]
        for rows, of_step in zip(steps.tolist(), of_steps, strict=True)
    ]


def _num_needed(of_steps: Sequence[Sequence[int]], most: int, num_ranks: int) -> int:
    num = max(len(best_fit(lengths, most)) for lengths in of_steps)
    return -(-num // num_ranks) * num_ranks


def best_fit(lengths: Sequence[int], most: int) -> MicroBatches:
    """Best-fit decreasing: from the longest row on, each goes to the micro-batch with the least room for it, or into a
    new one if all would have more than `most` tokens. A row that is longer stands alone.

    It never needs more than 11/9 of the fewest that are possible, plus 4 (Johnson et al. 1974,
    https://doi.org/10.1137/0203025). TRL packs so with `packing_strategy: bfd`.
    """
    cuts: MicroBatches = []
    rooms: list[tuple[int, int]] = []  # tokens that a micro-batch has room for, and its place in `cuts`; sorted
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        at = bisect_left(rooms, (lengths[place],))
        if at == len(rooms):
            room, cut = most, len(cuts)
            cuts.append([])
        else:
            room, cut = rooms.pop(at)
        cuts[cut].append(place)
        insort(rooms, (room - lengths[place], cut))
    return cuts


def even_fit(lengths: Sequence[int], num: int, most: int) -> MicroBatches:
    """`num` micro-batches, the largest first, of at most `most` tokens, for which best fit needs no more than `num`.

    Their size is about the smallest at which it does not need more, to a hundredth of `most` (MULTIFIT, Coffman, Garey
    and Johnson 1978, https://doi.org/10.1137/0207001): ranks then wait little for each other, and the largest needs
    little memory.
    """
    low, high = max(*lengths, -(-sum(lengths) // num)), most
    while high - low > most // 100:
        middle = (low + high) // 2
        if len(best_fit(lengths, middle)) <= num:
            high = middle
        else:
            low = middle + 1
    cuts = best_fit(lengths, high)

    def num_tokens(cut: Sequence[int]) -> int:
        return sum(lengths[place] for place in cut)

    while len(cuts) < num:  # each rank must make as many passes as the others
        cuts.append([max((cut for cut in cuts if len(cut) > 1), key=num_tokens).pop()])
    return sorted(cuts, key=num_tokens, reverse=True)


def _fewest(sorted_lengths: np.ndarray, most: int, num_ranks: int) -> int:
    """Micro-batches of equally many padded rows, so that none has more tokens; or of one row, if that cannot be."""
    batch_size, longest = sorted_lengths.shape[1], int(sorted_lengths.max())
    for num in range(num_ranks, batch_size, num_ranks):
        if batch_size % num == 0 and batch_size // num * longest <= most:
            return num
    return batch_size


def _cost(sorted_lengths: np.ndarray, num_micro_batches: int, num_ranks: int) -> float:
    """Tokens that a step processes, padding included, plus the cost of starting each micro-batch, in tokens.

    Of micro-batches that ranks compute at the same time, the longest one counts.
    """
    cut = sorted_lengths.reshape(len(sorted_lengths), num_micro_batches, -1)[:, num_ranks - 1 :: num_ranks]
    padded = cut[:, :, -1].sum(axis=1) * cut.shape[2]
    return float(padded.mean()) + cut.shape[1] * TOKENS_PER_START
