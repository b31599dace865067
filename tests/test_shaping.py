"""Reward shaping by hand: who gains and who loses, what does not count, and where the new rewards go."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from envs.messages import Message, ToolCall
from rl.algorithms.shaping import SHAPINGS, shaped, shaping_metrics
from rl.algorithms.shaping.budget import BudgetKept
from rl.algorithms.shaping.effort import Effort
from rl.algorithms.shaping.length import Length
from rl.algorithms.shaping.overlong import Overlong
from rl.algorithms.shaping.shaping import Shaping, thinking_tokens
from rl.algorithms.shaping.signs import sign_problems
from rl.data_types import Group
from tests.makers import ARITHMETIC, STORE, make_config, make_group, make_turn


def of_lengths(
    rewards: Sequence[float | None], lengths: Sequence[int], thinking_share: float = 0.0, asked: str = "How many?"
) -> Group:
    """A group whose rollouts have replies of so many tokens, of which a share is reasoning."""
    group = make_group(rewards)
    messages = (
        Message("user", asked),
        Message("assistant", "a" * round(100 * (1 - thinking_share)), "t" * round(100 * thinking_share)),
    )
    rollouts = [
        replace(one, turns=(make_turn(reply_ids=range(10, 10 + length)),), messages=messages)
        for one, length in zip(group.rollouts, lengths, strict=True)
    ]
    return replace(group, rollouts=tuple(rollouts))


def approx(*values: float | None) -> Any:
    return tuple(None if one is None else pytest.approx(one) for one in values)


def test_the_penalty_of_long_rollouts_grows_over_the_buffer() -> None:
    group = of_lengths([1.0, 1.0, 1.0, 0.0, None], [60, 80, 90, 120, 120])
    assert Overlong(max_tokens=100, buffer_tokens=20).shape(group) == approx(1.0, 1.0, 0.5, -1.0, None)
    assert Overlong(max_tokens=100, buffer_tokens=20, penalty=0.5).shape(group)[3] == -0.5


def test_length_control_is_relative_to_the_group_and_adds_up_to_nothing() -> None:
    # Shortness 1, 1/2, 0; centred 1/2, 0, -1/2; all tokens are the answer's.
    group = of_lengths([1.0, 0.0, 1.0, None], [10, 20, 30, 5])
    plain = Length(thinking=0.3, answer=0.4, thinking_bonus=0, answer_bonus=0)
    assert plain.shape(group) == approx(1.2, 0.0, 0.8, None)
    # Half of each is reasoning: the same shortness twice.
    half = of_lengths([1.0, 0.0, 1.0, None], [10, 20, 30, 5], thinking_share=0.5)
    assert thinking_tokens(half.rollouts[1]) == 10
    assert plain.shape(half) == approx(1.35, 0.0, 0.65, None)


def test_calls_of_tools_are_of_the_answer_and_not_of_the_reasoning() -> None:
    group = of_lengths([1.0, 1.0], [160, 100])
    # ["find", {"text": "aa...a"}] has 22 characters beside its 136 of text: 158, and "hm" makes 160.
    call = Message("assistant", "", "hm", (ToolCall("find", {"text": "a" * 136}),))
    long, short = (replace(one, messages=(Message("user", "?"), call)) for one in group.rollouts)
    assert thinking_tokens(long) == pytest.approx(2.0)
    shaping = Length(thinking=0, answer=0.4, thinking_bonus=0, answer_bonus=0)
    assert shaping.shape(replace(group, rollouts=(long, short))) == approx(0.8, 1.2)
    told = replace(group, task=replace(group.task, budget=50), rollouts=(long, short))
    assert BudgetKept(alpha=0.01).shape(told)[0] == pytest.approx(0.98)  # 0.5 + (50 - 2) / 100


def test_a_bonus_is_for_the_shortest_only_if_it_is_among_the_best() -> None:
    bonus = Length(thinking=0, answer=0, thinking_bonus=0, answer_bonus=0.5)
    assert bonus.shape(of_lengths([1.0, 0.0, 0.0], [10, 20, 30])) == (1.5, 0.0, 0.0)
    assert bonus.shape(of_lengths([0.0, 1.0, 1.0], [10, 20, 30])) == (0.0, 1.0, 1.0)
    assert bonus.shape(of_lengths([1.0, 1.0], [10, 10])) == (1.0, 1.0)  # none is shorter than another
    assert bonus.shape(of_lengths([1.0, None], [10, 20])) == (1.0, None)


def test_low_effort_rewards_few_tokens_where_it_was_asked_for() -> None:
    shaping = Effort(tokens=100, weight=0.5, penalty=2.0)
    asked = "How many? {reasoning effort: efficient}"
    # 1/2 * (1 - 20/100) = 0.4: 1 + 0.4; 1/2 * (1 - 140/100) = -0.2: 1 - 2 * 0.2.
    assert shaping.shape(of_lengths([1.0, 1.0, 0.0, None], [20, 140, 20, 20], asked=asked)) == approx(
        1.4, 0.6, 0.0, None
    )
    assert shaping.shape(of_lengths([1.0, 1.0], [20, 140])) == (1.0, 1.0)
    group = of_lengths([1.0, 1.0], [20, 20], asked=asked)
    said = (*group.rollouts[1].messages, Message("user", "It fails."))  # the environment's answer, no task
    assert shaping.shape(replace(group, rollouts=(group.rollouts[0], replace(group.rollouts[1], messages=said)))) == (
        approx(1.4, 1.4)
    )


def test_a_budget_that_is_kept_pays_and_one_that_is_not_costs() -> None:
    # Reasoning of 20, 40, 60 and 100 tokens; the last two go beyond a budget of 50, as another engine might let them.
    group = of_lengths([1.0, 1.0, 0.5, 1.0, None], [40, 80, 120, 200, 10], thinking_share=0.5)
    group = replace(group, task=replace(group.task, budget=50))
    assert BudgetKept(alpha=0.01).shape(group) == approx(0.8, 0.6, 0.2, 0.0, None)
    assert BudgetKept(alpha=0.1).shape(group) == approx(1.0, 1.0, 0.0, 0.0, None)
    assert BudgetKept(aim="exact", alpha=0.01).shape(group) == approx(0.7, 0.9, 0.4, 0.5, None)
    for budget in ("off", "unlimited"):
        free = replace(group, task=replace(group.task, budget=budget))
        assert BudgetKept().shape(free) == (1.0, 1.0, 0.5, 1.0, None)


def test_a_budget_is_that_of_a_reply_and_not_of_all_turns() -> None:
    group = of_lengths([1.0], [60], thinking_share=0.5)
    (one,) = group.rollouts
    turns = tuple(make_turn(reply_ids=range(30), is_start=place == 0) for place in range(2))
    said = (*one.messages, *one.messages[1:])
    group = replace(group, task=replace(group.task, budget=15), rollouts=(replace(one, turns=turns, messages=said),))
    assert BudgetKept().shape(group) == approx(0.5)  # 30 tokens of reasoning in two replies


def test_shapings_of_an_environment_are_applied_in_order_and_to_no_other() -> None:
    first, second = Overlong(max_tokens=20, buffer_tokens=10), Effort(marker="How", tokens=10, weight=1.0)
    group = of_lengths([1.0, 1.0], [5, 15])
    other = replace(group, group_id="0-1", task=replace(group.task, ordinal=1, env_id=STORE))
    (a, b) = shaped([group, other], {ARITHMETIC: (first, second)})
    # 1 + 1 * (1 - 5/10) = 1.5; first 1 - 0.5, then 0.5 - 0.5.
    assert [one.reward for one in a.rollouts] == [pytest.approx(1.5), pytest.approx(0.0)]
    assert b is other
    assert shaping_metrics([group, other], {ARITHMETIC: (first, second)}) == {
        f"shaping/{ARITHMETIC}": pytest.approx(-0.25)
    }


def problems(lowest: float, *shapings: Shaping) -> list[str]:
    return [one.key.rpartition(".")[2] for one in sign_problems(ARITHMETIC, shapings, lowest, "")]


def test_shapings_that_multiply_are_refused_where_rewards_may_be_negative() -> None:
    """A reward of -10 with a used-up budget would become 0, the best; the shortest of an effort would lose most."""
    factors = (BudgetKept(), Effort())
    assert all(problems(-13.0, one) == ["0"] and not problems(0.0, one) for one in factors)
    assert not problems(-13.0, Length(), Overlong(max_tokens=20, buffer_tokens=10), BudgetKept(aim="exact"))
    group = of_lengths([-10.0, -10.0], [20, 100], thinking_share=0.5)
    kept, used_up = BudgetKept(alpha=0.1).shape(replace(group, task=replace(group.task, budget=20)))
    assert (kept, used_up) == (-10.0, 0.0)


def test_shapings_that_multiply_are_refused_after_those_that_subtract_from_the_same_tasks() -> None:
    overlong = Overlong(max_tokens=20, buffer_tokens=10, penalty=0.5)
    for before in (overlong, Length(), Effort(), BudgetKept(aim="exact")):
        assert problems(0.0, before, BudgetKept()) == ["1"] and not problems(0.0, BudgetKept(), before)
    assert not problems(0.5, overlong, BudgetKept()) and problems(0.4, overlong, BudgetKept()) == ["1"]
    assert problems(0.5, BudgetKept(), overlong, Effort()) == ["2"]  # after the factor rewards begin at 0
    assert not problems(0.0, Length(thinking=0, answer=0), BudgetKept(), Effort(penalty=0), Effort())
    low, medium = Length(budgets=("low",)), Effort(budgets=("medium",))
    assert not problems(0.0, low, medium) and problems(0.0, low, Effort(budgets=("low", "medium"))) == ["1"]


def test_the_configuration_holds_a_list_for_each_environment() -> None:
    tree = {"shaping": ["length", {"shaping": "overlong", "max_tokens": 100, "buffer_tokens": 10}]}
    config = make_config(environments={ARITHMETIC: tree, STORE: {}})
    assert config.shapings == {ARITHMETIC: (Length(), Overlong(max_tokens=100, buffer_tokens=10))}
    assert set(SHAPINGS) == {"length", "overlong", "effort", "budget"}
    with pytest.raises(ValidationError, match="must be at most max_tokens"):
        Overlong(max_tokens=10, buffer_tokens=11)
