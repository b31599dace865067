"""Algorithms: advantages, objectives, corrections and penalties by hand, and beside TRL's losses."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from envs.messages import Message
from rl.algorithms import ALGORITHMS
from rl.algorithms.algorithm import Algorithm
from rl.algorithms.cispo import Cispo
from rl.algorithms.corrections import weights_within
from rl.algorithms.dapo import Dapo
from rl.algorithms.dr_grpo import DrGrpo
from rl.algorithms.grpo import Grpo
from rl.algorithms.gspo import Gspo
from rl.algorithms.kl import k1, k2, still_to_come
from rl.algorithms.max_rl import MaxRl
from rl.algorithms.policy_gradient import PolicyGradient
from rl.algorithms.reinforce_plus_plus import ReinforcePlusPlus
from rl.algorithms.rloo import Rloo
from rl.data_types import Group, Outcome
from rl.learner.batch_loss import batch_loss
from rl.learner.batching import make_batches
from rl.learner.rows import sort_rows
from rl.learner.samples import JoinedSamples, make_samples
from rl.tokens import ADVANTAGE
from tests.loss_cases import MATH, make_batch, random_case, run, total, trl_loss
from tests.makers import make_group, make_turn

ANY_MISMATCH: Any = {"sequence_mismatch_max": 1e6}


def advantages(algorithm: Algorithm, *groups: Group) -> list[Any]:
    return [
        tuple(one if one is None else pytest.approx(one, abs=1e-5) for one in own)
        for own in algorithm.advantages(groups)
    ]


def of(*rewards: float | None) -> Group:
    return make_group(list(rewards))


# Advantages


def test_advantages_of_each_algorithm_by_hand() -> None:
    group = of(1.0, 0.0, 0.0, 0.0)  # mean 1/4, sample deviation 1/2
    assert advantages(Rloo(), group) == [(1.0, -1 / 3, -1 / 3, -1 / 3)]
    assert advantages(DrGrpo(tokens_per_sequence=10), group) == [(0.75, -0.25, -0.25, -0.25)]
    for algorithm in (Dapo(), Gspo(), Cispo()):
        assert advantages(algorithm, group) == [(1.5, -0.5, -0.5, -0.5)]
    assert advantages(MaxRl(), group) == [(3.0, -1.0, -1.0, -1.0)]


def test_reinforce_divides_by_the_deviation_of_all_groups_of_the_step() -> None:
    # Centred: 1/2, -1/2; 0, 0; 1/4, -1/4. Mean of squares: (1/4 + 1/4 + 1/16 + 1/16) / 6 = 5/48.
    deviation = math.sqrt(5 / 48)
    expected = [
        (0.5 / deviation, -0.5 / deviation, None),
        (0.0, 0.0, None),
        (0.25 / deviation, None, -0.25 / deviation),
    ]
    algorithm = ReinforcePlusPlus()
    assert advantages(algorithm, of(1.0, 0.0, None), of(1.0, 1.0, None), of(0.5, None, 0.0)) == expected
    assert advantages(algorithm, of(None, None)) == [(None, None)]
    assert advantages(algorithm, of(1.0, 1.0)) == [(0.0, 0.0)]


def test_max_rl_weights_a_success_by_one_over_the_rate_of_successes() -> None:
    assert advantages(MaxRl(), of(1.0, 1.0, 0.0, None)) == [(0.5, 0.5, -1.0, None)]
    assert advantages(MaxRl(), of(0.0, 0.0), of(1.0, None)) == [(0.0, 0.0), (0.0, None)]
    assert advantages(MaxRl(), of(1.0, -1.0), of(0.0, -0.5)) == [(1.0, -1.0), (0.0, 0.0)]  # shaping may go below 0


def test_scaling_by_the_deviation_of_the_others_is_nemo_rls() -> None:
    # 3: others 1, 2: mean 1.5, deviation sqrt(1/2). 1: others 3, 2. 2: others 3, 1: mean 2, deviation sqrt(2).
    algorithm = Grpo(scale_by_std="leave_one_out")
    assert advantages(algorithm, of(3.0, 1.0, 2.0)) == [(1.5 * math.sqrt(2), -1.5 * math.sqrt(2), 0.0)]
    # The others of the only success are all 0, so nothing is divided; those of a failure deviate by sqrt(1/2).
    assert advantages(algorithm, of(1.0, 0.0, 0.0)) == [(1.0, -math.sqrt(0.5), -math.sqrt(0.5))]
    assert advantages(algorithm, of(1.0, 0.0)) == [(1.0, -1.0)]
    by_rounding = advantages(algorithm, of(1.0, 0.3, 0.1 + 0.2))
    assert by_rounding[0][0] == 0.7


COMPARING = [name for name, kind in ALGORITHMS.items() if "teacher" not in kind.model_fields]
"""Distillation compares no rollouts (tests/test_mopd.py)."""


@pytest.mark.parametrize("name", COMPARING)
def test_every_algorithm_keeps_groups_apart_and_masked_rows_out(name: str) -> None:
    tree = {"algorithm": name} | ({"tokens_per_sequence": 10} if name == "dr_grpo" else {})
    algorithm = ALGORITHMS[name].model_validate(tree)
    masked, without, equal = algorithm.advantages([of(1.0, 0.0, None), of(1.0, 0.0), of(1.0, 1.0)])
    assert masked == (*without, None) and equal == (0.0, 0.0)
    assert masked[0] is not None and masked[1] is not None and masked[0] == -masked[1] > 0


def test_advantages_are_clamped_and_cut_rollouts_filtered_after_the_statistics() -> None:
    group = of(1.0, 0.0, 0.0)
    cut = replace(group.rollouts[2], outcome=Outcome.TRUNCATED)
    out_of_turns = replace(group, rollouts=(*group.rollouts[:2], cut))
    assert advantages(Grpo(overlong_filtering=True), out_of_turns) == [(1.0, -0.5, -0.5)]
    cut = replace(cut, turns=(replace(cut.turns[-1], finish="length"),))
    group = replace(group, rollouts=(*group.rollouts[:2], cut))
    assert advantages(Grpo(), group) == [(1.0, -0.5, -0.5)]
    assert advantages(Grpo(overlong_filtering=True), group) == [(1.0, -0.5, 0.0)]
    assert advantages(Grpo(advantage_max=0.75), group) == [(0.75, -0.5, -0.5)]


def written(*texts: tuple[str, str]) -> Group:
    """A group of two rollouts, the first with these replies (text, reasoning), in one context."""
    group = of(1.0, 0.0)
    turns = tuple(make_turn([1] if i else [1, 2], [10 + i], is_start=i == 0) for i in range(len(texts)))
    messages = tuple(Message("assistant", text, reasoning) for text, reasoning in texts)
    first = replace(group.rollouts[0], turns=turns, messages=(Message("user", "?"), *messages))
    return replace(group, rollouts=(first, *group.rollouts[1:]))


def test_tokens_of_malformed_replies_get_an_advantage_of_their_own() -> None:
    group = written(("<tool_call>oops", ""), ("Fine.", "thought"), ("4", "hm <think> hm"), ("</think> 4", ""))
    punishing = Grpo(malformed_advantage=-5.0)
    samples = make_samples([group], lambda _: punishing)
    (batch,) = make_batches(samples, 100, 0)
    first = [row for row in range(2) if batch.loss_mask_BT[row].sum() == 4]
    assert batch.advantages_BT[first[0]][batch.loss_mask_BT[first[0]]].tolist() == [-5.0, 1.0, -5.0, -5.0]
    other = batch.advantages_BT[1 - first[0]]
    assert set(other[batch.loss_mask_BT[1 - first[0]]].tolist()) == {-1.0}
    opened = replace(group.rollouts[0], messages=(Message("assistant", "</think>"), *group.rollouts[0].messages))
    assert punishing.turn_advantages(opened, 1.0) == [-5.0, 1.0, -5.0, -5.0]  # an opening may have replies
    cut = replace(group.rollouts[0], turns=tuple(replace(one, finish="length") for one in group.rollouts[0].turns))
    assert punishing.turn_advantages(cut, 1.0) == [1.0] * 4  # a call that was cut is no malformed one
    for sample in make_samples([group], lambda _: Grpo()):
        assert ADVANTAGE not in sample.tokens.columns


def test_a_malformed_reply_teaches_in_a_group_without_a_signal_too() -> None:
    group = written(("<function_call>", ""))
    group = replace(group, rollouts=tuple(replace(one, reward=1.0) for one in group.rollouts))
    punishing = Grpo(malformed_advantage=-5.0)
    samples = make_samples([group], lambda _: punishing)
    joined = JoinedSamples.join(samples).cut()  # as they reach the learner
    rows = sort_rows(joined, lambda _: punishing, measured_share=1.0)
    assert [len(rows.trained), len(rows.measured)] == [1, 1]


# Objectives


def test_a_mean_over_sequences_weights_each_by_its_length() -> None:
    # 3 and 1 loss tokens; the step has 10 tokens in 4 rows. Each row: A / (4 rows * its tokens).
    mask = [[False, True, True, True], [False, True, False, False]]
    batch = make_batch([[0.0] + [-1.0] * 3] * 2, [1.0, -2.0], mask, num_loss_tokens=10, num_loss_rows=4)
    loss, gradient, _ = run([[0.0] + [-1.0] * 3] * 2, batch, Grpo(average="sequences"))
    assert loss == pytest.approx(-(1.0 - 2.0) / 4)
    torch.testing.assert_close(gradient, torch.tensor([[0.0] + [-1 / 12] * 3, [0.0, 0.5, 0.0, 0.0]]))


def test_dr_grpo_divides_by_one_constant_for_all_sequences() -> None:
    mask = [[False, True, True, True], [False, True, False, False]]
    batch = make_batch([[0.0] + [-1.0] * 3] * 2, [1.0, -2.0], mask, num_loss_tokens=10, num_loss_rows=4)
    loss, gradient, _ = run([[0.0] + [-1.0] * 3] * 2, batch, DrGrpo(tokens_per_sequence=8))
    assert loss == pytest.approx(-(3.0 - 2.0) / (4 * 8))
    torch.testing.assert_close(gradient, torch.tensor([[0.0] + [-1 / 32] * 3, [0.0, 2 / 32, 0.0, 0.0]]))


def test_gspo_clips_the_geometric_mean_of_the_ratios() -> None:
    # Ratios 2 and 1/2 have mean 1: in the range. Ratios 2 and 2 have mean 2: clipped for an advantage above 0.
    up, down = -2.0 + math.log(2), -2.0 - math.log(2)
    batch = make_batch([[0.0, -2.0, -2.0]] * 2, [1.0, 1.0])
    loss, gradient, sums = run([[0.0, up, down], [0.0, up, up]], batch, Gspo(**ANY_MISMATCH))
    assert loss == pytest.approx(-(1.0 + 1.0004) / 2)
    torch.testing.assert_close(gradient, torch.tensor([[0.0, -0.25, -0.25], [0.0, 0.0, 0.0]]))
    assert total(sums, "clip_fraction") == 2


def test_the_ratio_of_a_sequence_has_the_tokens_that_a_correction_leaves_out() -> None:
    # Log ratios 0.1 and 3: the second token is left out; the mean is 1.55.
    batch = make_batch([[0.0, -4.0, -4.0]], [-1.0])
    algorithm = Gspo(correction="mask", importance_weight_max=2.0, clip_low=0.5, clip_high=0.5, **ANY_MISMATCH)
    loss, gradient, _ = run([[0.0, -3.9, -1.0]], batch, algorithm)
    assert loss == pytest.approx(math.exp(1.55) / 2, rel=1e-5)
    assert gradient.tolist() == [[0.0, pytest.approx(math.exp(1.55) / 2, rel=1e-5), 0.0]]


def test_penalties_of_a_mean_over_sequences_are_weighted_alike() -> None:
    mask = [[False, True, True, True], [False, True, False, False]]
    batch = make_batch([[0.0] + [-1.0] * 3] * 2, [0.0, 0.0], mask)
    reference = [[0.0] + [-1.0 + math.log(2)] * 3] * 2
    loss, _, _ = run([[0.0] + [-1.0] * 3] * 2, batch, Grpo(average="sequences", reference_kl=1.0), reference)
    assert loss == pytest.approx(1.0 - math.log(2))


def test_cispo_bounds_the_weight_and_keeps_the_gradient_of_every_token() -> None:
    batch = make_batch([[0.0, -3.0, -3.0]], [1.0])
    loss, gradient, sums = run([[0.0, -3.0 + math.log(8), -3.0]], batch, Cispo(**ANY_MISMATCH))
    assert loss == pytest.approx(-(5.0 + 1.0) / 2)
    torch.testing.assert_close(gradient, torch.tensor([[0.0, -2.5, -0.5]]))
    assert total(sums, "truncated_weight_fraction") == 1


def test_dual_clipping_bounds_the_loss_of_a_negative_advantage() -> None:
    batch = make_batch([[0.0, -3.0]], [-1.0])
    loss, gradient, _ = run([[0.0, -3.0 + math.log(8)]], batch, Dapo(importance_weight_max=3.0, **ANY_MISMATCH))
    assert (loss, gradient[0, 1].item()) == (pytest.approx(3.0), 0.0)
    loss, gradient, _ = run([[0.0, -3.0 + math.log(8)]], batch, Dapo(**ANY_MISMATCH))
    assert (loss, gradient[0, 1].item()) == (pytest.approx(8.0), pytest.approx(8.0))


# Corrections


def test_each_correction_by_hand() -> None:
    # Ratios 4, 1/4 and 1; 8 and 2 (and one token without a loss); the bounds are 1/2 and 2.
    delta = torch.tensor([[4.0, 0.25, 1.0], [8.0, 2.0, 1.0]]).log()
    mask = torch.tensor([[True, True, True], [True, True, False]])
    weights, outside = weights_within(delta, mask, "truncate", 0.5, 2.0)
    torch.testing.assert_close(weights, torch.tensor([[2.0, 0.5, 1.0], [2.0, 2.0, 1.0]]))
    assert outside.tolist() == [[True, True, False], [True, False, False]]
    weights, outside = weights_within(delta, mask, "mask", 0.5, 2.0)
    torch.testing.assert_close(weights, torch.tensor([[0.0, 0.0, 1.0], [0.0, 2.0, 1.0]]))
    # Geometric means: 1, and sqrt(16) = 4.
    weights, outside = weights_within(delta, mask, "mask_sequence", 0.5, 2.0)
    torch.testing.assert_close(weights, torch.tensor([[4.0, 0.25, 1.0], [0.0, 0.0, 0.0]]))
    assert outside.tolist() == [[False, False, False], [True, True, False]]
    weights, outside = weights_within(torch.tensor([[110.0]]), torch.tensor([[True]]), "truncate", 0.0, None)
    assert weights.isfinite().all() and not outside.any()


@pytest.mark.parametrize("clip", [{}, {"clip_low": 0.2, "clip_high": 0.2}])
def test_masked_tokens_leave_the_loss_and_its_gradient_but_not_the_denominator(clip: dict[str, float]) -> None:
    algorithm = Grpo(correction="mask", sequence_mismatch_max=math.exp(80), **clip)  # type: ignore[arg-type]
    batch = make_batch([[0.0, -60.0, -1.0]], [1.0])
    loss, gradient, sums = run([[0.0, -1.0, -1.0]], batch, algorithm)
    assert loss == pytest.approx(-0.5)
    assert gradient.tolist() == [[0.0, 0.0, -0.5]]
    assert total(sums, "truncated_weight_fraction") == 1 and total(sums, "masked_fraction") == 0


# Penalties


def test_the_estimators_by_hand_and_far_apart() -> None:
    ratio = torch.tensor([math.log(2), 110.0, -110.0])
    assert k1(ratio).tolist() == pytest.approx([-math.log(2), -20.0, 20.0])
    assert k2(ratio).tolist() == pytest.approx([math.log(2) ** 2 / 2, 200.0, 200.0])
    assert still_to_come(torch.tensor([[1.0, 2.0, 4.0]])).tolist() == [[7.0, 6.0, 4.0]]


def test_a_penalty_in_the_reward_reaches_each_token_with_those_after_it() -> None:
    # k1 = policy - reference: 1 and 2 nats; advantages 1 - 0.1 * 3 and 1 - 0.1 * 2.
    algorithm = Rloo(reference_kl=0.1)
    batch = make_batch([[0.0, -1.0, -1.0]], [1.0])
    loss, gradient, sums = run([[0.0, -1.0, -1.0]], batch, algorithm, reference=[[0.0, -2.0, -3.0]])
    torch.testing.assert_close(gradient, torch.tensor([[0.0, -0.7 / 2, -0.8 / 2]]))
    assert loss == pytest.approx(-(0.7 + 0.8) / 2)
    assert total(sums, "reference_kl") == pytest.approx(3.0)
    assert algorithm.needs_reference and algorithm.needs_every_row


def test_k2_in_the_loss_pulls_towards_the_reference() -> None:
    batch = make_batch([[0.0, -1.0]], [0.0])
    loss, gradient, _ = run([[0.0, -1.0]], batch, ReinforcePlusPlus(reference_kl=0.1), reference=[[0.0, -3.0]])
    assert (loss, gradient[0, 1].item()) == (pytest.approx(0.1 * 2.0), pytest.approx(0.1 * 2.0))


def test_an_entropy_bonus_adds_the_mean_entropy_and_needs_every_row() -> None:
    batch = make_batch([[0.0, -1.0, -1.0]], [0.0], num_loss_tokens=4)
    entropy = torch.tensor([[0.0, 1.0, 3.0]], requires_grad=True)
    algorithm = Grpo(entropy_bonus=0.5)
    loss, _ = batch_loss(batch.columns["logprob"].clone().requires_grad_(), entropy, batch, lambda _: algorithm, 0)
    loss.backward()
    assert loss.item() == pytest.approx(-0.5 * (1.0 + 3.0) / 4)
    assert entropy.grad is not None and entropy.grad.tolist() == [[0.0, -0.125, -0.125]]
    assert algorithm.needs_every_row and not Grpo().needs_every_row


# Keys


def test_presets_are_the_recipes_and_keys_win_over_them() -> None:
    nano, ultra = Grpo(preset="nano"), Grpo.model_validate({"preset": "ultra", "advantage_max": 7})
    assert nano.overlong_filtering and nano.importance_weight_max is None and nano.scale_by_std == "leave_one_out"
    assert (ultra.importance_weight_min, ultra.importance_weight_max, ultra.advantage_max) == (0.2, 5.0, 7.0)
    assert Grpo.model_validate(ultra.model_dump()) == ultra


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"reference_kl": 0.1, "reference_kl_estimator": "k1"}, "gradient of 0 on average"),
        ({"importance_weight_min": 2.0}, r"importance_weight_min \(2\) must be below"),
        ({"preset": "mini"}, "preset"),
        ({"entropy_bonus": -1.0}, "entropy_bonus"),
    ],
)
def test_keys_that_do_not_fit_are_refused(keys: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Grpo.model_validate(keys)


CLIPPING: list[dict[str, Any]] = [
    {"algorithm": "dapo"},
    {"algorithm": "gspo"},
    {"algorithm": "reinforce++"},
    {"algorithm": "grpo", "clip_low": 0.2, "clip_high": 0.28},
    {"algorithm": "grpo", "clip_low": 0.2, "clip_high": 0.28, "preset": "ultra", "importance_weight_min": 0},
]


@pytest.mark.parametrize("keys", CLIPPING)
def test_bounds_that_an_objective_with_clips_ignores_are_refused(keys: dict[str, Any]) -> None:
    algorithm = ALGORITHMS[keys["algorithm"]]
    algorithm.model_validate(keys)
    algorithm.model_validate({**keys, "correction": "mask", "importance_weight_min": 0.5, "importance_weight_max": 5})
    for bound in (1.01, 0.99):
        given = {**keys, "correction": "mask_sequence", "importance_weight_min": 0.9, "importance_weight_max": bound}
        algorithm.model_validate(given)
    with pytest.raises(
        ValidationError, match=r"importance_weight_min \(0\.1\) does nothing: .* importance_weight_min: 0"
    ):
        algorithm.model_validate({**keys, "importance_weight_min": 0.1, "importance_weight_max": None})
    if keys["algorithm"] == "gspo":
        with pytest.raises(
            ValidationError, match=r"importance_weight_max \(3\) does nothing: .* importance_weight_max: null"
        ):
            algorithm.model_validate({**keys, "importance_weight_max": 3.0})
        return
    given = algorithm.model_validate(keys)
    assert isinstance(given, PolicyGradient) and given.clips is not None
    algorithm.model_validate({**keys, "importance_weight_max": 1 + given.clips[1]})
    for correction, why in (("truncate", "tokens with a negative advantage"), ("mask", "clip_high would do nothing")):
        with pytest.raises(ValidationError, match=rf"importance_weight_max \(1\.1\) is below 1 \+ clip_high .*{why}"):
            algorithm.model_validate({**keys, "correction": correction, "importance_weight_max": 1.1})


def test_a_preset_with_a_lower_bound_and_clips_says_how_to_replace_it() -> None:
    with pytest.raises(ValidationError, match=r"\(0\.2\) does nothing: .*: 0, which also replaces that of a preset"):
        Grpo.model_validate({"preset": "ultra", "clip_low": 0.2, "clip_high": 0.28})


def test_rows_of_a_step_are_counted_with_those_that_are_left_out() -> None:
    groups = [make_group([1.0, 0.0]), make_group([1.0, 1.0], ordinal=1)]
    samples = make_samples(groups, lambda _: Grpo())
    rows = sort_rows(samples, lambda _: Grpo(), measured_share=1.0)
    assert (len(rows.trained), len(rows.measured), rows.num_loss_rows) == (2, 2, 4)


# TRL's numbers

TRL_CASES: dict[str, tuple[Algorithm, dict[str, Any]]] = {
    "grpo over sequences": (
        Grpo(average="sequences", clip_low=0.2, clip_high=0.2, importance_weight_max=None, **ANY_MISMATCH),
        {"loss_type": "grpo", "clip": (0.2, 0.2)},
    ),
    "dapo": (Dapo(**ANY_MISMATCH), {"loss_type": "dapo", "clip": (0.2, 0.28)}),
    "dr_grpo": (
        DrGrpo(tokens_per_sequence=16, importance_weight_max=None, **ANY_MISMATCH),
        {"loss_type": "dr_grpo", "weight_max": 1e9, "max_completion_length": 16},
    ),
    "gspo": (
        Gspo(clip_low=0.05, clip_high=0.08, **ANY_MISMATCH),
        {"loss_type": "grpo", "clip": (0.05, 0.08), "importance_sampling_level": "sequence"},
    ),
    "cispo": (
        Cispo(importance_weight_max=1.2, **ANY_MISMATCH),
        {"loss_type": "cispo", "clip": (0.2, 1.2)},
    ),
}


@pytest.mark.slow  # importing TRL takes as long as all other tests of this file
@pytest.mark.parametrize("case", TRL_CASES)
def test_the_gradient_is_that_of_trl(case: str) -> None:
    pytest.importorskip("trl")
    algorithm, settings = TRL_CASES[case]
    for seed in range(5):
        logprobs, entropy, batch, _ = random_case(seed)
        _, expected, _ = trl_loss(logprobs, entropy, batch, **settings)
        loss, _ = batch_loss(logprobs, entropy, batch, {MATH: algorithm}.__getitem__, 0)
        (gradient,) = torch.autograd.grad(loss, logprobs)
        torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=0.0)
        assert expected.abs().max() > 1e-3
