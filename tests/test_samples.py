"""Samples: tokens are copied from the turns, joined where turns go on, and masked where the policy did not sample."""

import math
import pickle
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rl.algorithms.grpo import Grpo
from rl.data_types import Group, Rollout, Sample, Turn
from rl.learner.batching import make_batches
from rl.learner.samples import JoinedSamples, TurnError, make_samples, rollout_samples
from rl.tokens import OUT_OF_BAND_TOKENS, ROUTES, Tokens
from tests.makers import ARITHMETIC, STORE, make_group, make_rollout, make_task, make_turn

TASK = make_task(3, STORE)
store_turn = partial(make_turn, version=5)


def store_rollout(*turns: Turn, reward: float | None = 1.0, member: int = 0) -> Rollout:
    return make_rollout(reward, task=TASK, member=member, turns=turns)


def columns(sample: Sample, *names: str) -> list[list[Any]]:
    arrays = {"ids": sample.tokens.ids, "sampled": sample.tokens.sampled, **sample.tokens.columns}
    return [arrays[name].tolist() for name in names]


def test_one_turn_is_one_row_with_its_prompt_masked():
    (sample,) = rollout_samples(store_rollout(store_turn([1, 2], [3, 4])), advantage=0.5)
    assert sample.env_id == "tools/Store-v0"
    ids, sampled, logprobs, versions = columns(sample, "ids", "sampled", "logprob", "version")
    assert ids == [1, 2, 3, 4]
    assert sampled == [False, False, True, True]
    assert logprobs == [0.0, 0.0, -0.5, -0.75]
    assert versions == [0, 0, 5, 5]
    assert sample.advantage == 0.5


def test_turns_that_go_on_are_one_row_and_what_comes_between_is_masked():
    first = store_turn([1, 2], [3, 4])
    second = store_turn([90, 91], [5], version=6, is_start=False)
    (sample,) = rollout_samples(store_rollout(first, second), advantage=1.0)
    ids, sampled, versions = columns(sample, "ids", "sampled", "version")
    assert ids == [1, 2, 3, 4, 90, 91, 5]
    assert sampled == [False, False, True, True, False, False, True]
    assert versions == [0, 0, 5, 5, 0, 0, 6]


def test_a_prompt_that_rewrote_the_past_starts_a_new_row():
    first = store_turn([1, 2], [3, 4])
    second = store_turn([1, 2, 4, 90], [5])
    third = store_turn([91], [6], is_start=False)
    samples = rollout_samples(store_rollout(first, second, third), advantage=1.0)
    assert [sample.tokens.ids.tolist() for sample in samples] == [[1, 2, 3, 4], [1, 2, 4, 90, 5, 91, 6]]
    assert [sample.tokens.sampled.sum() for sample in samples] == [2, 2]


def test_forced_tokens_stay_in_the_row_but_not_in_the_loss():
    (sample,) = rollout_samples(store_rollout(store_turn([1], [2, 3, 4], forced={1})), advantage=1.0)
    ids, sampled, logprobs, versions = columns(sample, "ids", "sampled", "logprob", "version")
    assert ids == [1, 2, 3, 4]
    assert sampled == [False, True, False, True]
    assert logprobs == [0.0, -0.5, 0.0, -1.0]
    assert versions == [0, 5, 0, 5]


def test_a_forced_token_may_have_any_logprob():
    reply = Tokens.make([2, 3], [False, True], {"logprob": [-math.inf, -0.5], "version": [5, 5]})
    turn = replace(store_turn([1], [2, 3]), reply=reply)
    (sample,) = rollout_samples(store_rollout(turn), advantage=1.0)
    assert sample.tokens.columns["logprob"].tolist() == [0.0, 0.0, -0.5]


def test_any_further_column_goes_along_whatever_its_shape():
    columns = {"logprob": [-0.5, -0.5], "version": [1, 1], "experts": np.array([[3, 1], [2, 0]], np.uint8)}
    turn = replace(store_turn([7], [8, 9]), reply=Tokens.make([8, 9], [True, True], columns))
    (sample,) = rollout_samples(store_rollout(turn), advantage=1.0, needs={"experts"})
    assert sample.tokens.columns["experts"].tolist() == [[0, 0], [3, 1], [2, 0]]
    assert sample.tokens.columns["experts"].dtype == np.uint8


def routed(*experts):
    """One layer and two experts a token."""
    return np.array([[[expert, expert + 1]] for expert in experts], np.uint8)


def test_prompts_and_forced_tokens_keep_their_experts_on_the_way_to_a_batch():
    turn = store_turn([1, 5], [2, 3, 4], forced={1})
    reply = Tokens.make(turn.reply.ids, turn.reply.sampled, {**turn.reply.columns, ROUTES: routed(6, 7, 0)})
    turn = replace(turn, prompt=Tokens.unsampled([1, 5], {ROUTES: routed(4, 5)}), reply=reply)
    rows = rollout_samples(store_rollout(turn), advantage=1.0, needs=[ROUTES])
    assert rows[0].tokens.columns["logprob"].tolist() == [0.0, 0.0, -0.5, 0.0, -1.0]
    sent = pickle.loads(pickle.dumps(JoinedSamples.join([*rows, *samples_of_one_token()]), 5)).cut()
    (batch,) = make_batches(sent, 100, 0)
    assert batch.columns[ROUTES].dtype == torch.uint8
    assert batch.columns[ROUTES][0, :, 0, 0].tolist() == [4, 5, 6, 7, 0]
    assert not batch.columns[ROUTES][1].any()  # padding, and a row without a record


def samples_of_one_token():
    return rollout_samples(store_rollout(store_turn([1], [2])), advantage=1.0)


def test_rollouts_without_a_record_of_experts_name_the_key_that_needs_it():
    groups = [make_group([1.0, 0.0])]
    with pytest.raises(TurnError, match=r"no column routed_experts, which learner\.routing_replay needs"):
        make_samples(groups, lambda env_id: Grpo(), [ROUTES])


def test_rows_without_sampled_tokens_are_left_out():
    turns = store_turn([1], [2], forced={0}), store_turn([9], [])
    assert rollout_samples(store_rollout(*turns), advantage=1.0) == []


def test_rollouts_that_do_not_count_give_no_rows():
    good, bad = (
        store_rollout(store_turn([1], [2]), reward=1.0),
        store_rollout(store_turn([1], [3]), reward=0.0, member=1),
    )
    lost = store_rollout(store_turn([1], [4]), reward=None, member=2)
    group = Group(group_id="g", task=TASK, rollouts=(good, lost, bad))
    samples = make_samples([group], lambda env_id: Grpo(baseline="mean"))
    assert [(sample.tokens.ids.tolist(), sample.advantage) for sample in samples] == [([1, 2], 0.5), ([1, 3], -0.5)]


def test_each_environment_has_the_advantages_of_its_own_algorithm_in_the_order_of_the_groups():
    groups = [
        make_group([1.0, 0.0], ordinal=0, env_id=STORE),
        make_group([1.0, 0.0], ordinal=1, env_id=ARITHMETIC),
    ]
    by_env = {"math/Arithmetic-v0": Grpo(baseline="mean"), "tools/Store-v0": Grpo(baseline="leave_one_out")}
    samples = make_samples(groups, by_env.__getitem__)
    assert [sample.env_id for sample in samples] == ["tools/Store-v0"] * 2 + ["math/Arithmetic-v0"] * 2
    assert [sample.advantage for sample in samples] == [1.0, -1.0, 0.5, -0.5]


def test_rows_are_the_same_after_the_way_to_the_learner() -> None:
    short, long = (
        store_rollout(store_turn([1], [2])),
        store_rollout(store_turn([3, 4], list(range(OUT_OF_BAND_TOKENS)))),
    )
    samples = [*rollout_samples(short, advantage=0.5), *rollout_samples(long, advantage=-1.0)]
    assert pickle.loads(pickle.dumps(JoinedSamples.join(samples), 5)).cut() == samples
    assert JoinedSamples.join([]).cut() == []


def broken_turn(**columns):
    return replace(store_turn([1], [2, 3]), reply=Tokens.make([2, 3], [True, True], columns))


@pytest.mark.parametrize(
    ("turn", "said"),
    [
        (broken_turn(version=[0, 0]), "no column logprob"),
        (broken_turn(version=[0, 0], logprob=[-0.5, math.nan]), "sampled token 1 has logprob nan"),
        (store_turn([], [2]), "the prompt is empty"),
    ],
)
def test_a_turn_that_contradicts_itself_is_an_error_that_says_where(turn, said):
    with pytest.raises(TurnError, match=rf"tools/Store-v0', task 3, turn 0: .*{said}"):
        rollout_samples(store_rollout(turn), advantage=1.0)


def test_a_column_that_the_algorithm_needs_and_the_engine_did_not_give_is_an_error():
    with pytest.raises(TurnError, match="no column teacher_logprob"):
        rollout_samples(store_rollout(store_turn([1], [2])), advantage=1.0, needs={"teacher_logprob"})


token_lists = st.lists(st.integers(0, 9), min_size=1, max_size=5)


@st.composite
def conversations(draw):
    """Turns of which some go on from the one before and some rewrite the past."""
    turns = []
    for _ in range(draw(st.integers(1, 5))):
        reply = draw(st.lists(st.integers(0, 9), max_size=5))
        forced = draw(st.sets(st.integers(0, 4), max_size=2))
        is_start = not turns or draw(st.booleans())
        turns.append(store_turn(draw(token_lists), reply, forced=forced, is_start=is_start))
    return turns


def sampled_tokens(tokens: Tokens) -> list[tuple[int, float]]:
    ids, logprobs = tokens.ids[tokens.sampled], tokens.columns["logprob"][tokens.sampled]
    return list(zip(ids.tolist(), logprobs.tolist(), strict=True))


@given(conversations())
def test_every_sampled_token_is_in_the_loss_exactly_once_and_in_order(turns):
    samples = rollout_samples(store_rollout(*turns), advantage=1.0)
    trained = [pair for sample in samples for pair in sampled_tokens(sample.tokens)]
    assert trained == [pair for turn in turns for pair in sampled_tokens(turn.reply)]


@given(conversations())
def test_each_row_is_a_whole_context_and_columns_hold_nothing_where_nothing_was_sampled(turns):
    contexts: list[list[int]] = []
    for turn in turns:
        if turn.is_start:
            contexts.append([])
        contexts[-1] += [*turn.prompt.ids.tolist(), *turn.reply.ids.tolist()]
    for sample in rollout_samples(store_rollout(*turns), advantage=1.0):
        ids, sampled, logprobs, versions = columns(sample, "ids", "sampled", "logprob", "version")
        assert ids in contexts
        assert not sampled[0]
        for keep, logprob, version in zip(sampled, logprobs, versions, strict=True):
            assert version == 5 if keep else (logprob, version) == (0.0, 0)
