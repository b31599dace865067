"""Weighted parts, checks of form, and values of code, computed by hand."""

import math
from typing import Any

import pytest

from rewards.abstention import abstention_reward
from rewards.calls import judge_calls
from rewards.choice import choice_correct, chosen_letter
from rewards.code import extract_code, same_value, share_correct
from rewards.constraints import Constraint, follows, share_followed
from rewards.rubric import Rubric
from rewards.state import state_differences, state_reached


def test_parts_are_weighted_and_sum_to_the_total() -> None:
    parts = Rubric({"answer": 0.8, "style": 0.2})({"answer": 1.0, "style": 0.5})
    assert parts == {"answer": 0.8, "style": pytest.approx(0.1)}


def test_full_scores_give_exactly_one() -> None:
    weights = {"a": 0.1, "b": 0.2, "c": 0.7}
    assert math.fsum(Rubric(weights)(dict.fromkeys(weights, 1.0)).values()) == 1.0


def test_a_shut_gate_leaves_penalties_only() -> None:
    rubric = Rubric({"format": 0.0, "answer": 1.0, "length": -0.5}, gates=["format"])
    assert rubric({"format": 1.0, "answer": 1.0, "length": 0.5}) == {"format": 0.0, "answer": 1.0, "length": -0.25}
    assert rubric({"format": 0.9, "answer": 1.0, "length": 0.5}) == {"format": 0.0, "answer": 0.0, "length": -0.25}
    with pytest.raises(ValueError, match="gate 'tone' has no weight"):
        Rubric({"answer": 1.0}, gates=["tone"])


def test_a_total_out_of_bounds_is_brought_back_by_a_part_of_its_own() -> None:
    rubric = Rubric({"answer": 1.0, "length": -0.5}, bounds=(0.0, 1.0))
    assert rubric({"answer": 0.0, "length": 1.0}) == {"answer": 0.0, "length": -0.5, "clipped": 0.5}
    assert rubric({"answer": 1.0, "length": 0.0})["clipped"] == 0.0


def test_other_names_and_scores_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="they must be the same"):
        Rubric({"b": 1.0})({"a": 1.0})
    for score in (1.5, -0.1, float("nan")):
        with pytest.raises(ValueError, match="must be in"):
            Rubric({"a": 1.0})({"a": score})


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("I think so.\n(C)", "C"),
        ("Answer: D", "D"),
        ("the answer is **B**", "B"),
        ("The answer is a matter of taste. I say\nB", "B"),
        ("The answer is a bit subtle. Answer: C", "C"),
        ("\\boxed{A} although answer: B", "A"),
        ("\\boxed{\\text{C}}", "C"),
        ("Answer: A or answer: B", None),
        ("A B C D", None),
        ("Answer: E", None),
        ("An apple", None),
        ("The answer isn't known", None),
        ("", None),
    ],
)
def test_a_choice_is_read_from_where_it_is_stated(text: str, letter: str | None) -> None:
    assert chosen_letter(text, "ABCD") == letter
    assert choice_correct(text, "B") == float(letter == "B")


WANTED = [("book", {"city": ["Paris", "paris, france"], "nights": [2], "share": ["", 0.5]})]


@pytest.mark.parametrize(
    ("calls", "category"),
    [
        ([("book", {"city": "PARIS", "nights": 2})], "right"),
        ([("book", {"city": "Paris France", "nights": 2.0, "share": 0.5})], "right"),
        ([], "no_call"),
        ([("book", {"city": "Paris", "nights": 2})] * 2, "wrong_number_of_calls"),
        ([("hotel", {"city": "Paris", "nights": 2})], "wrong_function"),
        ([("book", {"nights": 2})], "missing_argument"),
        ([("book", {"city": "Paris", "nights": 2, "pets": 1})], "unknown_argument"),
        ([("book", {"city": "Paris", "nights": "2"})], "wrong_type"),
        ([("book", {"city": "Paris", "nights": True})], "wrong_type"),
        ([("book", {"city": "Rome", "nights": 2})], "wrong_value"),
    ],
)
def test_calls_are_judged_by_name_and_arguments(calls: Any, category: str) -> None:
    assert judge_calls(calls, WANTED) == category


def test_calls_of_one_turn_have_no_order_and_each_counts_once() -> None:
    wanted = [("f", {"x": [1, 2]}), ("f", {"x": [1]}), ("g", {"y": [{"a": [1], "b": [2, ""]}]})]
    assert judge_calls([("g", {"y": {"a": 1}}), ("f", {"x": 1}), ("f", {"x": 2})], wanted) == "right"
    assert judge_calls([("g", {"y": {"a": 1}}), ("f", {"x": 2}), ("f", {"x": 2})], wanted) == "wrong_value"
    assert judge_calls([("g", {"y": {"c": 1}}), ("f", {"x": 1}), ("f", {"x": 2})], wanted) == "wrong_value"
    assert judge_calls([("f", {})], []) == "unexpected_call"
    assert judge_calls([], []) == "right"


def test_abstaining_earns_half() -> None:
    assert abstention_reward("I don\u2019t know.", 0.0) == 0.5
    assert abstention_reward("12", 1.0) == 1.0
    assert abstention_reward("12", 0.0) == 0.0
    assert abstention_reward("I don't know, 12", 0.0) == 0.0


def test_states_differ_at_paths_and_in_types() -> None:
    state = {"mail": {1: {"folder": "inbox"}}, "num": 1, "list": [1, 2]}
    assert state_reached(state, {"num": 1, "mail": {1: {"folder": "inbox"}}, "list": [1, 2]}) == 1.0
    wanted = {"mail": {1: {"folder": "bin"}, 2: {}}, "num": True, "list": [2, 1]}
    assert state_differences(state, wanted) == ["list", "mail.1.folder", "mail.2", "num"]


@pytest.mark.parametrize(
    ("kind", "value", "good", "bad"),
    [
        ("words", 3, "sun, moon; star", "sun moon"),
        ("words", 2, "don't stop", "do not stop"),
        ("lines", 2, "sun\n\nmoon\n", "sun moon"),
        ("use", "moon", "Sun Moon.", "sun moons"),
        ("avoid", "moon", "sun moonlight", "the MOON"),
        ("start", "sun", "Sun: moon", "moon sun"),
        ("end", "sun", "moon sun!", "sun moon"),
        ("order", ("sun", "moon"), "sun sea moon", "moon sea sun"),
        ("order", ("sun", "moon"), "a sun moon sun", "sun sea"),
        ("distinct", None, "sun moon", "sun moon Sun"),
        ("capitals", None, "SUN MOON", "SUN Moon"),
    ],
)
def test_each_constraint_is_followed_or_not(kind: str, value: Any, good: str, bad: str) -> None:
    assert follows(good, Constraint(kind, value))
    assert not follows(bad, Constraint(kind, value))


@pytest.mark.parametrize("text", ["", "  \n", "...", "12 34"])
def test_a_text_without_words_follows_nothing(text: str) -> None:
    for constraint in (
        Constraint("avoid", "moon"),
        Constraint("distinct"),
        Constraint("words", 0),
        Constraint("capitals"),
    ):
        assert not follows(text, constraint)


def test_an_unknown_constraint_is_named_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="no constraint 'rhyme'; kinds: words, lines"):
        follows("sun", Constraint("rhyme"))


def test_the_share_followed_counts_each_constraint_once() -> None:
    constraints = (Constraint("words", 2), Constraint("use", "sun"), Constraint("end", "sea"))
    assert share_followed("sun moon", constraints) == pytest.approx(2 / 3)
    assert share_followed("sun sea", constraints) == 1.0


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("def f(x): return x", "def f(x): return x"),
        ("Sure:\n```python\na = 1\n```\nDone", "a = 1\n"),
        ("```\nold\n```\nbetter:\n```py\nnew\n```", "new\n"),
        ("```python\nunclosed = 1", "unclosed = 1"),
    ],
)
def test_code_is_the_last_fenced_block_or_all_of_the_text(text: str, code: str) -> None:
    assert extract_code(text) == code


def test_values_are_equal_only_in_type_too() -> None:
    assert same_value([1, "a", None, {"k": [True]}], [1, "a", None, {"k": [True]}])
    assert not same_value(1, 1.0)
    assert not same_value(True, 1)
    assert not same_value([1], [1, 2])
    assert not same_value({"k": 1}, {"j": 1})
    assert not same_value(float("nan"), float("nan"))


def test_the_share_of_right_values_needs_a_value_for_each() -> None:
    assert share_correct([1, 2, 3, 5], [1, 2, 3, 4]) == 0.75
    assert share_correct([1], [1, 2]) == 0.0
    assert share_correct([], []) == 0.0
