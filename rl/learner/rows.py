"""Which rows of a step have a gradient, and which of the others are measured all the same?

A row whose advantage is 0 adds exactly 0 to the gradient of most algorithms, but to the denominator of the loss as many
tokens as any other. Leaving it out of the passes changes nothing but the time. A share of these rows still goes
through the forward pass, so that the mismatch, the entropy and the load of experts stay those of the whole step.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np

from rl.algorithms.algorithm import Algorithm
from rl.data_types import Sample
from rl.tokens import ADVANTAGE


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a step, by what the learner does with them."""

    trained: Sequence[Sample]
    """They go through the forward and the backward pass."""
    measured: Sequence[Sample]
    """They stand for all rows without a gradient: forward pass only."""
    measured_weight: float
    """What each measured token counts for: the loss tokens of all rows without a gradient, by those measured."""
    num_loss_tokens: int
    """Of all rows, those that are left out too: the denominator of the loss."""
    num_loss_rows: int
    """All rows, those that are left out too."""


def sort_rows(samples: Sequence[Sample], algorithm_of: Callable[[str], Algorithm], measured_share: float) -> Rows:
    """Every row is trained whose advantage is not 0 or whose algorithm `needs_every_row`.

    Of the others `measured_share` are measured, at equal distances, the first one always. If no row is to be trained,
    the first one is: the optimiser's moments decay in such a step too, as if all rows were computed.
    """
    teaches = [_has_advantage(sample) or algorithm_of(sample.env_id).needs_every_row for sample in samples]
    if samples and not any(teaches):
        teaches[0] = True
    trained = [sample for sample, is_trained in zip(samples, teaches, strict=True) if is_trained]
    others = [sample for sample, is_trained in zip(samples, teaches, strict=True) if not is_trained]
    measured = [sample for i, sample in enumerate(others) if ceil((i + 1) * measured_share) > ceil(i * measured_share)]
    num_measured = _num_loss_tokens(measured)
    return Rows(
        trained,
        measured,
        _num_loss_tokens(others) / num_measured if num_measured else 0.0,
        _num_loss_tokens(samples),
        len(samples),
    )


def _has_advantage(sample: Sample) -> bool:
    return bool(np.any(sample.tokens.columns.get(ADVANTAGE, sample.advantage)))


def _num_loss_tokens(samples: Sequence[Sample]) -> int:
    return sum(int(np.count_nonzero(sample.tokens.sampled)) for sample in samples)
