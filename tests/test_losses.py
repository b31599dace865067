"""Losses, corrections and logprobs: hand-computed numbers, TRL's numbers, and what is refused."""

import math

import pytest
import torch

from rl.algorithms.corrections import NonFiniteError, sequence_mismatch
from rl.algorithms.grpo import Grpo
from rl.algorithms.kl import k3
from rl.learner.batch_loss import added, batch_loss, mean
from tests.loss_cases import MATH, STORE, make_batch, random_case, run, total, trl_loss

# Hand-computed numbers


def test_on_policy_the_loss_is_minus_the_advantage_and_the_gradient_goes_up_the_rewarded_tokens():
    batch = make_batch([[0.0, -1.0, -2.0], [0.0, -1.0, -1.0]], advantages=[2.0, -1.0])
    loss, gradient, sums = run([[0.0, -1.0, -2.0], [0.0, -1.0, -1.0]], batch)
    assert loss == pytest.approx(-(2 + 2 - 1 - 1) / 4)
    torch.testing.assert_close(gradient, torch.tensor([[0.0, -0.5, -0.5], [0.0, 0.25, 0.25]]))
    assert total(sums, "mismatch") == 4.0
    assert total(sums, "mismatch_kl") == total(sums, "truncated_weight_fraction") == total(sums, "clip_fraction") == 0.0


def test_the_denominator_is_the_step_and_not_the_micro_batch():
    batch = make_batch([[0.0, -1.0]], advantages=[1.0], num_loss_tokens=10)
    loss, gradient, _ = run([[0.0, -1.0]], batch)
    assert loss == pytest.approx(-0.1)
    assert gradient[0, 1].item() == pytest.approx(-0.1)


def test_importance_weights_are_truncated_from_above_only():
    # weights: exp(ln 3) = 3 -> 2, exp(-ln 4) = 0.25
    batch = make_batch([[0.0, -3.0, -1.0]], advantages=[1.0])
    config = Grpo(importance_weight_max=2.0, sequence_mismatch_max=100.0)
    loss, gradient, sums = run([[0.0, -3.0 + math.log(3), -1.0 - math.log(4)]], batch, config)
    assert loss == pytest.approx(-(2.0 + 0.25) / 2)
    torch.testing.assert_close(gradient, torch.tensor([[0.0, -1.0, -0.125]]))
    assert total(sums, "truncated_weight_fraction") == 1
    assert total(sums, "mismatch") == pytest.approx(3 + 4)


def test_clipping_stops_the_gradient_outside_the_trust_region():
    # ratios 1.5, 1.1, 0.5 with advantage 1: clipped at 1.2, free, free (a low ratio may always rise)
    logprobs = [[0.0, math.log(1.5) - 1, math.log(1.1) - 1, math.log(0.5) - 1]]
    config = Grpo(clip_low=0.2, clip_high=0.2)
    batch = make_batch([[0.0, -1.0, -1.0, -1.0]], advantages=[1.0])
    loss, gradient, sums = run(logprobs, batch, config)
    assert loss == pytest.approx(-(1.2 + 1.1 + 0.5) / 3)
    torch.testing.assert_close(gradient, torch.tensor([[0.0, 0.0, -1.1 / 3, -0.5 / 3]]))
    assert total(sums, "clip_fraction") == 1
    # with advantage -1: free, free, clipped at 0.8
    batch = make_batch([[0.0, -1.0, -1.0, -1.0]], advantages=[-1.0])
    loss, gradient, sums = run(logprobs, batch, config)
    assert loss == pytest.approx((1.5 + 1.1 + 0.8) / 3)
    torch.testing.assert_close(gradient, torch.tensor([[0.0, 0.5, 1.1 / 3, 0.0]]))
    assert total(sums, "clip_fraction") == 1


def test_importance_weights_may_be_bounded_where_the_clip_is():
    assert Grpo(clip_low=0.2, clip_high=0.53, importance_weight_max=1.53).clip_high == 0.53


def test_the_reference_penalty_is_k3_of_reference_against_policy():
    # log r = reference - policy = ln 2: k3 = 2 - 1 - ln 2; its gradient by the policy's logprob is 1 - 2
    batch = make_batch([[0.0, -2.0]], advantages=[0.0])
    config = Grpo(reference_kl=0.1)
    loss, gradient, sums = run([[0.0, -2.0]], batch, config, reference=[[0.0, -2.0 + math.log(2)]])
    assert loss == pytest.approx(0.1 * (1 - math.log(2)))
    assert gradient[0, 1].item() == pytest.approx(-0.1)
    assert total(sums, "reference_kl") == pytest.approx(1 - math.log(2))


def test_k3_is_zero_for_equal_policies_and_never_negative():
    assert k3(torch.tensor([0.0, math.log(2), -math.log(2)])).tolist() == pytest.approx(
        [0.0, 1 - math.log(2), -0.5 + math.log(2)]
    )


@pytest.mark.parametrize(
    ("log_ratio", "value", "gradient"),
    [
        (19.0, math.exp(19) - 20, math.exp(19) - 1),
        (21.0, math.exp(20) - 21, 0.0),
        (110.0, math.exp(20) - 21, 0.0),
        (-110.0, 109.0, -1.0),
    ],
)
def test_k3_of_policies_far_apart_is_finite_and_so_is_its_gradient(log_ratio, value, gradient):
    ratio = torch.tensor(log_ratio, requires_grad=True)
    estimate = k3(ratio)
    estimate.backward()
    assert ratio.grad is not None
    assert (estimate.item(), ratio.grad.item()) == pytest.approx((value, gradient))


def test_a_reference_far_from_the_policy_gives_a_finite_loss_and_gradient():
    batch = make_batch([[0.0, -111.0, -1.0]], advantages=[1.0])
    loss, gradient, sums = run([[0.0, -111.0, -1.0]], batch, Grpo(reference_kl=0.1), reference=[[0.0, -1.0, -1.0]])
    assert loss == pytest.approx(-1 + 0.1 * (math.exp(20) - 21) / 2)
    torch.testing.assert_close(gradient, torch.tensor([[0.0, -0.5, -0.5]]))
    assert math.isfinite(total(sums, "reference_kl"))


def test_a_sequence_far_from_the_engine_leaves_the_loss_but_not_the_denominator():
    # row 0: mean(3, 2) = 2.5 > 2 is masked; row 1: mean(3, 1) = 2 stays
    engine = [[0.0, -5.0, -5.0], [0.0, -5.0, -5.0]]
    logprobs = [[0.0, -5.0 + math.log(3), -5.0 - math.log(2)], [0.0, -5.0 - math.log(3) + 1e-6, -5.0]]
    loss, gradient, sums = run(logprobs, make_batch(engine, advantages=[1.0, 1.0]))
    assert loss == pytest.approx(-(1 / 3 + 1) / 4)
    assert gradient[0].tolist() == [0.0, 0.0, 0.0]
    assert (total(sums, "masked_fraction"), sums["masked_fraction"].weight.item()) == (1, 2)
    assert total(sums, "mismatch") == pytest.approx(9.0)


@pytest.mark.parametrize("clip", [{}, {"clip_low": 0.2, "clip_high": 0.3}])
@pytest.mark.parametrize(("learner", "engine"), [(-1.0, -900.0), (-900.0, -1.0)])
def test_a_hopeless_sequence_is_masked_without_breaking_the_gradient(clip, learner, engine):
    config = Grpo(reference_kl=0.1, **clip)
    batch = make_batch([[0.0, engine], [0.0, -1.0]], advantages=[-1.0, 1.0])
    loss, gradient, sums = run([[0.0, learner], [0.0, -1.0]], batch, config, reference=[[0.0, -1.0], [0.0, -1.0]])
    assert loss == pytest.approx(-0.5)
    torch.testing.assert_close(gradient, torch.tensor([[0.0, 0.0], [0.0, -0.5]]))
    assert total(sums, "masked_fraction") == 1


@pytest.mark.parametrize(("learner", "engine"), [(-1.0, -101.0), (-101.0, -1.0)])
def test_the_mismatch_of_a_token_far_from_the_engine_is_a_number(learner, engine):
    batch = make_batch([[0.0, engine, -1.0, engine]], advantages=[1.0], versions=[[0, 7, 7, 6]])
    _, _, sums = run([[0.0, learner, -1.0, learner]], batch, trained_version=7)
    assert mean(sums, "mismatch") == pytest.approx((math.exp(100) + 1) / 2)
    assert mean(sums, "mismatch_stale") == pytest.approx(math.exp(100))


def test_rows_without_loss_tokens_are_not_sequences():
    batch = make_batch([[0.0, -1.0], [0.0, -1.0]], [1.0, 1.0], mask=[[False, True], [False, False]])
    _, gradient, sums = run([[0.0, -1.0], [0.0, -9.0]], batch)
    assert (total(sums, "masked_fraction"), sums["masked_fraction"].weight.item()) == (0, 1)
    assert gradient[1].tolist() == [0.0, 0.0]
    assert sequence_mismatch(torch.zeros(2, 2), batch.loss_mask_BT).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("whose", ["learner", "engine", "reference"])
def test_a_logprob_that_is_not_finite_is_refused(whose, value):
    good, bad = [[0.0, -1.0, -1.0]], [[0.0, -1.0, value]]
    batch = make_batch(bad if whose == "engine" else good, advantages=[1.0])
    reference = bad if whose == "reference" else good
    with pytest.raises(NonFiniteError, match=rf"1 of 2 logprobs of the {whose} are not finite, .*row 0, column 2"):
        run(bad if whose == "learner" else good, batch, Grpo(reference_kl=0.1), reference)


def test_measures_of_micro_batches_add_up():
    batch = make_batch([[0.0, -1.0]], advantages=[1.0], num_loss_tokens=2)
    _, _, sums = run([[0.0, -1.0]], batch)
    both = added(added({}, sums), sums)
    assert total(both, "loss") == pytest.approx(-1.0)
    assert both["masked_fraction"].weight.item() == 2
    assert mean(both, "mismatch") == 1.0


def test_mismatch_of_fresh_tokens_is_apart_from_that_of_stale_ones():
    # ratios 1, 2 and 4; the last two tokens were sampled by an older version
    logprobs = [[0.0, -1.0, -1.0 + math.log(2), -1.0 + math.log(4)]]
    batch = make_batch([[0.0, -1.0, -1.0, -1.0]], [1.0], versions=[[0, 7, 6, 5]])
    _, _, sums = run(logprobs, batch, Grpo(sequence_mismatch_max=100.0), trained_version=7)
    assert mean(sums, "mismatch") == 1.0
    assert mean(sums, "mismatch_stale") == pytest.approx(3.0)
    _, _, sums = run(logprobs, batch, Grpo(sequence_mismatch_max=100.0), trained_version=8)
    assert mean(sums, "mismatch") is None


def test_each_row_is_trained_by_the_algorithm_of_its_environment():
    # ratio 3: the first algorithm truncates the weight at 2, the second at 1.5
    batch = make_batch([[0.0, -3.0]] * 3, [1.0] * 3, env_ids=(MATH, STORE, MATH))
    by_env = {
        MATH: Grpo(sequence_mismatch_max=100.0),
        STORE: Grpo(sequence_mismatch_max=100.0, importance_weight_max=1.5),
    }
    loss, gradient, sums = run([[0.0, -3.0 + math.log(3)]] * 3, batch, by_env)
    assert loss == pytest.approx(-(2 + 1.5 + 2) / 3)
    torch.testing.assert_close(gradient[:, 1], torch.tensor([-2.0, -1.5, -2.0]) / 3)
    assert mean(sums, "truncated_weight_fraction") == 1.0


# TRL's numbers


CASES = {
    "on policy, truncated weights": ({"importance_weight_max": 1.2}, {"weight_max": 1.2}),
    "on policy with a reference": (
        {"importance_weight_max": 1.2, "reference_kl": 0.05},
        {"weight_max": 1.2, "beta": 0.05},
    ),
    "clipped": (
        {"clip_low": 0.2, "clip_high": 0.28, "importance_weight_max": 1.3},
        {"clip": (0.2, 0.28), "delta": 1.3},
    ),
    "clipped with a reference": (
        {"clip_low": 0.1, "clip_high": 0.1, "importance_weight_max": 1.2, "reference_kl": 0.02},
        {"clip": (0.1, 0.1), "delta": 1.2, "beta": 0.02},
    ),
}


@pytest.mark.slow  # importing TRL takes as long as all other tests of this file
@pytest.mark.parametrize("loss_type", ["dapo", "bnpo"])
@pytest.mark.parametrize("case", CASES)
def test_loss_gradient_and_metrics_are_those_of_trl(case, loss_type):
    pytest.importorskip("trl")
    settings, trl_settings = CASES[case]
    for seed in range(5):
        # dapo divides by the whole step's tokens, bnpo by the micro-batch's
        num_loss_tokens = 200 if loss_type == "dapo" else None
        logprobs, entropy, batch, reference = random_case(seed, num_loss_tokens)
        reference = reference if "beta" in trl_settings else None
        their_loss, their_gradient, metrics = trl_loss(
            logprobs, entropy, batch, loss_type=loss_type, ref=reference, **trl_settings
        )
        config = Grpo(sequence_mismatch_max=1e6, **settings)
        loss, sums = batch_loss(logprobs, entropy, batch, {MATH: config}.__getitem__, 0, reference)
        (gradient,) = torch.autograd.grad(loss, logprobs)
        num_tokens = int(batch.loss_mask_BT.sum())
        assert loss.item() == pytest.approx(their_loss, abs=1e-6)
        torch.testing.assert_close(gradient, their_gradient, atol=1e-6, rtol=0.0)
        assert total(sums, "entropy") / num_tokens == pytest.approx(metrics["entropy"][0], abs=1e-6)
        if reference is not None:
            assert total(sums, "reference_kl") / num_tokens == pytest.approx(metrics["kl"][0], abs=1e-6)


@pytest.mark.slow
def test_trl_counts_the_same_tokens_as_clipped():
    pytest.importorskip("trl")
    logprobs, entropy, batch, _ = random_case(0)
    _, _, metrics = trl_loss(logprobs, entropy, batch, clip=(0.2, 0.28))
    config = Grpo(clip_low=0.2, clip_high=0.28, sequence_mismatch_max=1e6)
    _, sums = batch_loss(logprobs, entropy, batch, lambda env_id: config, 0)
    clipped_share = total(sums, "clip_fraction") / int(batch.loss_mask_BT.sum())
    assert clipped_share == pytest.approx(metrics["clip_ratio/region_mean"][0])
    assert clipped_share > 0
