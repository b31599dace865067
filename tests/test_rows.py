"""Rows without a gradient: which are left out, and that neither the update nor what is measured changes by that."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from rl.algorithms.grpo import Grpo
from rl.data_types import Sample, Update
from rl.learner.learner import Learner
from rl.learner.rows import sort_rows
from tests.test_learner import config_with, hybrid_path, load, make_sample, on_policy, weights

assert hybrid_path
LEARNS, HAS_PENALTY = Grpo(), Grpo(reference_kl=0.1)


def rows(advantages: Sequence[float], share: float, algorithm: Grpo = LEARNS):
    samples = [make_sample([1, 2, *range(3, 5 + i)], advantage=one) for i, one in enumerate(advantages)]
    return sort_rows(samples, lambda env_id: algorithm, share), samples


def test_rows_without_an_advantage_are_not_trained_and_a_share_of_them_stands_for_all():
    sorted_rows, samples = rows([0.0, 1.0, 0.0, -0.5, 0.0, 0.0], share=0.5)
    assert sorted_rows.trained == [samples[1], samples[3]]
    assert sorted_rows.measured == [samples[0], samples[4]]
    # Replies of 2, 3, 4, 5, 6 and 7 tokens.
    assert sorted_rows.num_loss_tokens == 27
    assert sorted_rows.measured_weight == pytest.approx((2 + 4 + 6 + 7) / (2 + 6))


@pytest.mark.parametrize(("share", "num_measured"), [(0.0, 0), (0.01, 1), (0.34, 2), (1.0, 4)])
def test_any_share_measures_at_least_one_row(share: float, num_measured: int):
    sorted_rows, _ = rows([1.0, 0.0, 0.0, 0.0, 0.0], share)
    assert len(sorted_rows.measured) == num_measured


def test_an_algorithm_whose_loss_has_another_term_gets_every_row():
    sorted_rows, samples = rows([0.0, 1.0, 0.0], share=0.5, algorithm=HAS_PENALTY)
    assert sorted_rows.trained == samples
    assert (sorted_rows.measured, sorted_rows.measured_weight) == ([], 0.0)


def test_if_no_row_teaches_the_first_is_computed_and_without_rows_none():
    sorted_rows, samples = rows([0.0, 0.0], share=0.0)
    assert sorted_rows.trained == samples[:1]
    assert rows([], share=0.5)[0].num_loss_tokens == 0


def two_updates(path, samples: Sequence[Sample], **keys: Any) -> tuple[Learner, list[Update]]:
    learner = Learner(path, config_with(expert_bias_rate=1e-3, **keys))
    return learner, [learner.update(samples) for _ in range(2)]


@pytest.mark.parametrize("advantages", [(0.5, 0.0, 0.0, -0.5, 0.0, 0.0), (0.0,) * 6])
def test_an_update_without_them_is_the_update_with_them(hybrid_path, monkeypatch, advantages):
    generator = torch.Generator().manual_seed(2)
    ids = [torch.randint(0, 40, (6 + 3 * i,), generator=generator).tolist() for i in range(6)]
    own = on_policy(load(hybrid_path), [make_sample(row) for row in ids])
    samples = [Sample(one.env_id, one.tokens, value) for one, value in zip(own, advantages, strict=True)]
    sparing, updates = two_updates(hybrid_path, samples, measured_share=1.0)
    monkeypatch.setattr(Grpo, "needs_every_row", True)
    plain, all_updates = two_updates(hybrid_path, samples)
    for (name, value), other in zip(weights(sparing).items(), weights(plain).values(), strict=True):
        torch.testing.assert_close(value, other, rtol=0, atol=2e-6, msg=name)
    for update, other in zip(updates, all_updates, strict=True):
        assert update.num_loss_tokens == other.num_loss_tokens
        assert update.grad_norm == pytest.approx(other.grad_norm, rel=1e-4, abs=1e-9)
        for name in ("loss", "entropy", "mismatch_kl"):
            assert getattr(update, name) == pytest.approx(getattr(other, name), rel=1e-5, abs=1e-7)
        assert update.measures == pytest.approx(other.measures)


def test_what_is_left_out_is_counted(hybrid_path):
    samples = [make_sample([first, 2, 3, 4], advantage=float(first == 0)) for first in range(9)]
    _, (update, _) = two_updates(hybrid_path, samples, measured_share=0.25)
    assert (update.num_row_tokens, update.num_tokens, update.num_loss_tokens) == (4 * 9, 4 * 3, 2 * 9)
