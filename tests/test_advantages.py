"""Advantages: statistics of one group, over what counts and nothing else."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl.algorithms.advantages import RewardError, is_degenerate
from rl.algorithms.grpo import Grpo
from tests.makers import make_group

MEAN = Grpo(baseline="mean")
LEAVE_ONE_OUT = Grpo(baseline="leave_one_out")


def group_advantages(group, algorithm):
    (advantages,) = algorithm.advantages([group])
    return advantages


def approx(values):
    return tuple(value if value is None else pytest.approx(value) for value in values)


def test_a_masked_rollout_is_absent_from_the_mean_and_not_a_zero():
    group = make_group([1.0, None, 0.0, 0.0])
    assert group_advantages(group, MEAN) == approx((2 / 3, None, -1 / 3, -1 / 3))
    assert not is_degenerate(group)


@pytest.mark.parametrize("algorithm", [MEAN, LEAVE_ONE_OUT, Grpo(baseline="mean", scale_by_std=True)])
def test_groups_with_equal_prompts_and_all_equal_rewards_give_zero_each(algorithm):
    groups = [make_group([reward] * 4) for reward in (0.0, 1.0)]  # as one group they would have a mean of 0.5
    assert list(algorithm.advantages(groups)) == [(0.0, 0.0, 0.0, 0.0)] * 2
    assert all(is_degenerate(group) for group in groups)


@pytest.mark.parametrize("algorithm", [MEAN, LEAVE_ONE_OUT, Grpo(baseline="mean", scale_by_std=True)])
def test_rows_that_a_group_lacks_change_nothing_for_the_others(algorithm):
    other = make_group([1.0, 0.0, 0.5])
    expected = group_advantages(other, algorithm)
    for first in ([1.0, 1.0, 1.0, 0.0], [1.0, None, None, 0.0], [1.0], [None] * 4):
        assert list(algorithm.advantages([make_group(first), other]))[1] == expected


def test_a_group_of_one_valid_rollout_gives_zero():
    group = make_group([1.0, None])
    assert group_advantages(group, LEAVE_ONE_OUT) == (0.0, None)
    assert is_degenerate(group)


def test_a_group_without_valid_rollouts_gives_none():
    assert group_advantages(make_group([None, None]), MEAN) == (None, None)


def test_a_group_of_another_size_stands_for_itself():
    assert group_advantages(make_group([1.0, 0.0]), MEAN) == approx((0.5, -0.5))
    assert group_advantages(make_group([1.0, 0.0, 0.5, 0.5]), MEAN) == approx((0.5, -0.5, 0.0, 0.0))


def test_leave_one_out_compares_with_the_mean_of_the_others():
    # 3 - mean(1, 2) = 1.5; 1 - mean(3, 2) = -1.5; 2 - mean(3, 1) = 0
    assert group_advantages(make_group([3.0, 1.0, 2.0]), LEAVE_ONE_OUT) == approx((1.5, -1.5, 0.0))


def test_scaling_divides_by_the_sample_standard_deviation():
    # mean 2, sample variance (1 + 1 + 0) / 2 = 1
    scaled = Grpo(baseline="mean", scale_by_std=True)
    expected = 1.0 / (1.0 + 1e-6)
    assert group_advantages(make_group([3.0, 1.0, 2.0]), scaled) == approx((expected, -expected, 0.0))


def test_scaling_does_not_blow_up_rounding_errors():
    scaled = Grpo(baseline="mean", scale_by_std=True)
    advantages = group_advantages(make_group([0.3, 0.1 + 0.2]), scaled)
    assert advantages == pytest.approx((0.0, 0.0), abs=1e-9)


@pytest.mark.parametrize("reward", [None, math.nan, math.inf])
def test_a_valid_rollout_without_finite_reward_is_an_error_that_names_environment_and_task(reward):
    group = make_group([1.0, 0.0], ordinal=7)
    broken = replace(group, rollouts=(group.rollouts[0], replace(group.rollouts[1], reward=reward)))
    with pytest.raises(RewardError, match=r"math/Arithmetic-v0', task 7, rollout 1"):
        group_advantages(broken, MEAN)


rewards_of_a_group = st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=2, max_size=8)


@given(rewards_of_a_group, st.data())
def test_masked_rollouts_change_nothing_for_the_others(rewards, data):
    masked = data.draw(st.sets(st.integers(0, len(rewards) - 1)))
    advantages = group_advantages(
        make_group([None if member in masked else reward for member, reward in enumerate(rewards)]), LEAVE_ONE_OUT
    )
    kept = [reward for member, reward in enumerate(rewards) if member not in masked]
    assert [a for a in advantages if a is not None] == list(group_advantages(make_group(kept), LEAVE_ONE_OUT))
    assert {member for member, a in enumerate(advantages) if a is None} == masked


@given(rewards_of_a_group)
def test_advantages_of_a_group_sum_to_zero(rewards):
    for loss in (MEAN, LEAVE_ONE_OUT, Grpo(scale_by_std=True)):
        advantages = [a for a in group_advantages(make_group(rewards), loss) if a is not None]
        assert len(advantages) == len(rewards)
        assert sum(advantages) == pytest.approx(0.0, abs=1e-9)
