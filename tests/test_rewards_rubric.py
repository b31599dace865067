"""Weighted parts, checks of form, and values of code, computed by hand."""

from typing import Any

import pytest

from rewards.code import extract_code, same_value, share_correct
from rewards.constraints import Constraint, follows, share_followed
from rewards.rubric import weigh


def test_parts_are_weighted_and_sum_to_the_total() -> None:
    total, parts = weigh({"answer": 1.0, "style": 0.5}, {"answer": 0.8, "style": 0.2})
    assert total == pytest.approx(0.9)
    assert parts == {"answer": 0.8, "style": pytest.approx(0.1)}


def test_full_scores_give_exactly_one() -> None:
    weights = {"a": 0.1, "b": 0.2, "c": 0.7}
    assert weigh(dict.fromkeys(weights, 1.0), weights)[0] == 1.0


def test_other_names_and_scores_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="give both the same names"):
        weigh({"a": 1.0}, {"b": 1.0})
    for score in (1.5, -0.1, float("nan")):
        with pytest.raises(ValueError, match="must be in"):
            weigh({"a": score}, {"a": 1.0})


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
