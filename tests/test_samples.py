"""Samples: tokens are copied from the turns, joined where turns go on, and masked where the policy did not sample."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl.config.experiment import LossConfig
from rl.data_types import Group, Turn
from rl.learner.samples import TurnError, make_samples, rollout_samples
from tests import conftest

TASK = conftest.make_task(3, "tools/Store-v0")


def make_turn(prompt_ids, reply_ids, forced=(), version=5):
    return Turn(
        prompt_ids=tuple(prompt_ids),
        reply_ids=tuple(reply_ids),
        reply_logprobs=tuple(-0.5 - 0.01 * index for index in range(len(reply_ids))),
        forced_mask=tuple(index in forced for index in range(len(reply_ids))),
        policy_versions=(version,) * len(reply_ids),
        finish="stop",
    )


def make_rollout(*turns, reward=1.0, member=0):
    return conftest.make_rollout(reward, task=TASK, member=member, turns=turns)


def test_one_turn_is_one_row_with_its_prompt_masked():
    (sample,) = rollout_samples(make_rollout(make_turn([1, 2], [3, 4])), advantage=0.5)
    assert sample.env_id == "tools/Store-v0"
    assert sample.token_ids == (1, 2, 3, 4)
    assert sample.loss_mask == (False, False, True, True)
    assert sample.sampler_logprobs == (0.0, 0.0, -0.5, -0.51)
    assert sample.policy_versions == (-1, -1, 5, 5)
    assert sample.advantage == 0.5


def test_turns_that_go_on_are_one_row_and_what_comes_between_is_masked():
    first = make_turn([1, 2], [3, 4])
    second = make_turn([1, 2, 3, 4, 90, 91], [5], version=6)
    (sample,) = rollout_samples(make_rollout(first, second), advantage=1.0)
    assert sample.token_ids == (1, 2, 3, 4, 90, 91, 5)
    assert sample.loss_mask == (False, False, True, True, False, False, True)
    assert sample.policy_versions == (-1, -1, 5, 5, -1, -1, 6)


def test_a_prompt_that_rewrote_the_past_starts_a_new_row():
    first = make_turn([1, 2], [3, 4])
    second = make_turn([1, 2, 4, 90], [5])
    third = make_turn([1, 2, 4, 90, 5, 91], [6])
    samples = rollout_samples(make_rollout(first, second, third), advantage=1.0)
    assert [sample.token_ids for sample in samples] == [(1, 2, 3, 4), (1, 2, 4, 90, 5, 91, 6)]
    assert [sum(sample.loss_mask) for sample in samples] == [2, 2]


def test_a_shorter_prompt_starts_a_new_row():
    samples = rollout_samples(make_rollout(make_turn([1, 2], [3, 4]), make_turn([1, 2, 3], [5])), advantage=1.0)
    assert [sample.token_ids for sample in samples] == [(1, 2, 3, 4), (1, 2, 3, 5)]


def test_forced_tokens_stay_in_the_row_but_not_in_the_loss():
    (sample,) = rollout_samples(make_rollout(make_turn([1], [2, 3, 4], forced={1})), advantage=1.0)
    assert sample.token_ids == (1, 2, 3, 4)
    assert sample.loss_mask == (False, True, False, True)
    assert sample.sampler_logprobs == (0.0, -0.5, 0.0, -0.52)
    assert sample.policy_versions == (-1, 5, -1, 5)


def test_a_forced_token_may_have_any_logprob():
    turn = replace(make_turn([1], [2, 3], forced={0}), reply_logprobs=(-math.inf, -0.1))
    (sample,) = rollout_samples(make_rollout(turn), advantage=1.0)
    assert sample.sampler_logprobs == (0.0, 0.0, -0.1)


def test_rows_without_sampled_tokens_are_left_out():
    assert rollout_samples(make_rollout(make_turn([1], [2], forced={0}), make_turn([9], [])), advantage=1.0) == []


def test_rollouts_that_do_not_count_give_no_rows():
    good, bad = make_rollout(make_turn([1], [2]), reward=1.0), make_rollout(make_turn([1], [3]), reward=0.0, member=1)
    lost = make_rollout(make_turn([1], [4]), reward=None, member=2)
    group = Group(group_id="g", task=TASK, rollouts=(good, lost, bad))
    samples = make_samples([group], LossConfig(baseline="mean"))
    assert [(sample.token_ids, sample.advantage) for sample in samples] == [((1, 2), 0.5), ((1, 3), -0.5)]


@pytest.mark.parametrize(
    ("turn", "said"),
    [
        (replace(make_turn([1], [2, 3]), reply_logprobs=(-0.5,)), "lengths"),
        (replace(make_turn([1], [2, 3]), reply_logprobs=(-0.5, math.nan)), "sampled token 1 has logprob nan"),
        (make_turn([], [2]), "the prompt is empty"),
    ],
)
def test_a_turn_that_contradicts_itself_is_an_error_that_says_where(turn, said):
    with pytest.raises(TurnError, match=rf"tools/Store-v0', task 3, turn 0: .*{said}"):
        rollout_samples(make_rollout(turn), advantage=1.0)


token_lists = st.lists(st.integers(0, 9), min_size=1, max_size=5)


@st.composite
def conversations(draw):
    """Turns of which some go on from the one before and some rewrite the past."""
    turns, past = [], []
    for _ in range(draw(st.integers(1, 5))):
        new = draw(token_lists)
        prompt = new if draw(st.booleans()) else past + new
        reply = draw(st.lists(st.integers(0, 9), max_size=5))
        turns.append(make_turn(prompt, reply, forced=draw(st.sets(st.integers(0, 4), max_size=2))))
        past = prompt + reply
    return turns


@given(conversations())
def test_every_sampled_token_is_in_the_loss_exactly_once_and_in_order(turns):
    samples = rollout_samples(make_rollout(*turns), advantage=1.0)
    trained = [
        (token, logprob)
        for sample in samples
        for token, logprob, keep in zip(sample.token_ids, sample.sampler_logprobs, sample.loss_mask, strict=True)
        if keep
    ]
    sampled = [
        (token, logprob)
        for turn in turns
        for token, logprob, forced in zip(turn.reply_ids, turn.reply_logprobs, turn.forced_mask, strict=True)
        if not forced
    ]
    assert trained == sampled


@given(conversations())
def test_each_row_ends_as_its_last_turn_and_masked_columns_hold_nothing(turns):
    whole_turns = {turn.prompt_ids + turn.reply_ids for turn in turns}
    for sample in rollout_samples(make_rollout(*turns), advantage=1.0):
        assert sample.token_ids in whole_turns
        assert not sample.loss_mask[0]
        assert len(sample.token_ids) == len(sample.loss_mask) == len(sample.sampler_logprobs)
        for keep, logprob, version in zip(
            sample.loss_mask, sample.sampler_logprobs, sample.policy_versions, strict=True
        ):
            assert (logprob, version) == (0.0, -1) if not keep else version == 5
