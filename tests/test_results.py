"""What a valid result of an environment is: attributes, openings, steps, scores, texts, and the top of the range."""

import math
from typing import Any

import pytest

from envs.errors import MAX_ERROR_CHARACTERS, error_text, is_ours, named, shown
from envs.facts import reward_range_of
from envs.messages import Message, Reply, ToolCall, ToolSpec, valid, valid_text
from envs.results import (
    RangeError,
    ResultError,
    check_attributes,
    check_opened,
    check_total,
    is_full_reward,
    read_gold,
    read_opening,
    read_scores,
    read_step,
    task_key,
)
from envs.text_env import TextEnv

PARAMETERS = {"type": "object", "properties": {}}


class Wordless(Exception):
    def __str__(self) -> str:
        raise KeyError("no words")


class Unshowable:
    def __repr__(self) -> str:
        raise SystemExit(1)


class Undecided:
    def __bool__(self) -> bool:
        raise ValueError("neither")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("grün 💥", "grün 💥"),
        ("\ud800", "\ufffd"),
        ("q \udcff", "q \ufffd"),
        ("a\udc00\ud800b", "a\ufffd\ufffdb"),
        ("\ud83d\ude00", "😀"),  # two halves of one character
        ("", ""),
    ],
)
def test_lone_surrogates_are_replaced_and_pairs_are_joined(text: str, expected: str) -> None:
    assert valid_text(text) == expected
    valid_text(text).encode()


def test_every_text_of_a_message_and_of_a_tool_is_made_valid() -> None:
    message = Message("tool", "a\ud800", "b\ud800", (ToolCall("c\ud800", {"d\ud800": [{"e": "\ud800"}]}),), "f\ud800")
    assert valid(message) == Message(
        "tool", "a\ufffd", "b\ufffd", (ToolCall("c\ufffd", {"d\ufffd": [{"e": "\ufffd"}]}),), "f\ufffd"
    )
    spec = ToolSpec("g\ud800", "h\ud800", {"enum": ["\ud800"]})
    assert valid(spec) == ToolSpec("g\ufffd", "h\ufffd", {"enum": ["\ufffd"]})
    sound = Message("user", "ok", "", (ToolCall("f", {"x": [1, None, "é"]}),))
    assert valid(sound) is sound


def test_a_text_of_a_subclass_becomes_plain_text() -> None:
    class Loud(str):
        def __str__(self) -> str:
            raise RuntimeError

    assert type(valid_text(Loud("hm"))) is str


def test_an_exceptions_text_never_raises_and_is_bounded() -> None:
    assert error_text(Wordless()) == "(its text cannot be shown: __str__ raised KeyError)"
    assert named(KeyError("a")) == "KeyError: 'a'"
    assert named(TimeoutError()) == "TimeoutError"
    assert named(ValueError("\ud800")) == "ValueError: \ufffd"
    long = error_text(ValueError("x" * 1_000_000))
    assert long == "x" * MAX_ERROR_CHARACTERS + f" ... ({1_000_000 - MAX_ERROR_CHARACTERS} characters more)"
    assert shown(Unshowable()) == "a Unshowable that cannot be shown"
    assert shown(10**5000).startswith("a int")  # Python refuses to write it out


def test_our_own_errors_are_known_by_their_type() -> None:
    assert is_ours(ResultError("x")) and not is_ours(ValueError("x"))


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        *(("max_turns", value) for value in (None, 0, -1, 2.0, "3", True, [])),
        ("answer_of", "a text"),
        *(("reward_range", value) for value in (None, 1.0, (0,), (0, 1, 2), ("0", "1"), (1, 0), (1, 1), (math.nan, 1))),
        *(("tools", value) for value in (None, "price", {"a": 1}, ("price",), [{"name": "price"}])),
        *(("OPTIONS", value) for value in (None, ["level"], {1: 2}, "level")),
        ("is_async", None),
    ],
)
def test_an_attribute_of_the_wrong_kind_is_named(attribute: str, value: Any) -> None:
    env = type("Wrong", (TextEnv,), {attribute: value})()
    with pytest.raises(ResultError, match=attribute):
        check_attributes(env)


@pytest.mark.parametrize(
    "tool",
    [
        ToolSpec("", "d", PARAMETERS),
        ToolSpec(None, "d", PARAMETERS),  # pyright: ignore[reportArgumentType]
        ToolSpec("t", None, PARAMETERS),  # pyright: ignore[reportArgumentType]
        ToolSpec("t", "d", None),  # pyright: ignore[reportArgumentType]
        ToolSpec("t", "d", {"enum": {1, 2}}),
    ],
)
def test_a_tool_that_cannot_be_written_into_a_prompt_is_named(tool: ToolSpec) -> None:
    env = type("Wrong", (TextEnv,), {"tools": (tool,)})()
    with pytest.raises(ResultError, match="tools"):
        check_opened(env)


TOOLS = (ToolSpec("t", "d", PARAMETERS),)


@pytest.mark.parametrize("attributes", [{"max_turns": 2}, {"tools": TOOLS}])
@pytest.mark.parametrize("reward_range", [(-1, 0), (1, 5), (-5.0, -1.0)])
def test_a_range_without_the_total_of_an_episode_that_was_never_scored_is_refused(
    attributes: dict[str, Any], reward_range: Any
) -> None:
    env = type("Wrong", (TextEnv,), {**attributes, "reward_range": reward_range})()
    with pytest.raises(RangeError, match=r"reward_range must be from 0 or less to more than 0, got .*; shift"):
        check_opened(env)
    check_opened(type("Single", (TextEnv,), {"reward_range": reward_range})())  # its one reply is always scored


@pytest.mark.parametrize("reward_range", [(0, 1), (-1, 1), (-0.5, 3.0)])
def test_a_range_with_the_total_of_an_episode_that_was_never_scored_is_accepted(reward_range: Any) -> None:
    env = type("Right", (TextEnv,), {"tools": TOOLS, "max_turns": 3, "reward_range": reward_range})()
    assert check_opened(env) == (TOOLS, 3)


def test_tools_become_a_tuple_of_valid_ones() -> None:
    env = type("Sloppy", (TextEnv,), {"tools": [ToolSpec("t\ud800", "d", PARAMETERS)]})()
    check_opened(env)
    assert env.tools == (ToolSpec("t\ufffd", "d", PARAMETERS),)


@pytest.mark.parametrize(
    "messages",
    [
        [Message("user", "a list")],
        ("text",),
        (Message("narrator", "who?"),),  # pyright: ignore[reportArgumentType]
        (Message([], "who?"),),  # pyright: ignore[reportArgumentType]
        (Message("user", None),),  # pyright: ignore[reportArgumentType]
        (Message("user", b"bytes"),),  # pyright: ignore[reportArgumentType]
        (Message("user", "", None),),  # pyright: ignore[reportArgumentType]
        (Message("user", "", "", None),),  # pyright: ignore[reportArgumentType]
        (Message("user", "", "", ({"name": "f"},)),),  # pyright: ignore[reportArgumentType]
        (Message("user", "", "", (ToolCall("f", None),)),),  # pyright: ignore[reportArgumentType]
        (Message("tool", "", name=3),),  # pyright: ignore[reportArgumentType]
        (Message("user", "x" * 101),),
        (Message("tool", "", name="x" * 101),),
    ],
)
def test_messages_of_another_form_are_refused(messages: Any) -> None:
    with pytest.raises(ResultError):
        read_opening((messages, {}), 100)


def test_a_long_result_of_a_tool_is_cut_and_no_other_message() -> None:
    """How long it is depends on what the policy called; it must stay valid where it is read again."""
    messages = read_step(((Message("tool", "x" * 101, name="find"),), 0.0, False, False, {}), 100)[0]
    assert messages[0].content == "x" * 50 + " ... (51 characters more)" and messages[0].name == "find"
    assert read_step((messages, 0.0, False, False, {}), 100)[0] == messages
    for message in (Message("user", "x" * 101), Message("tool", "x", name="y" * 101)):
        with pytest.raises(ResultError, match=r"101 characters, more than rollout\.max_message_characters \(100\)"):
            read_step(((message,), 0.0, False, False, {}), 100)


@pytest.mark.parametrize(
    "result",
    [
        None,
        (),
        ((), 0.0, True, False),
        [(), 0.0, True, False, {}],
        ((), "1", True, False, {}),
        ((), True, True, False, {}),
        ((), math.nan, True, False, {}),
        ((), 10**5000, True, False, {}),
        ((), 0.0, "no", False, {}),
        ((), 0.0, Undecided(), False, {}),
        ((), 0.0, True, None, {}),
        ((), 0.0, True, False, []),
        ((), 0.0, True, False, {"reward_parts": {"a": math.inf}}),
        ((), 0.0, True, False, {"reward_parts": {Unshowable(): 1.0}}),
        ((), 0.0, True, False, {"reward_parts": Unshowable()}),
        (Unshowable(), 0.0, True, False, {}),
    ],
)
def test_steps_of_another_form_are_refused(result: Any) -> None:
    with pytest.raises(ResultError):
        read_step(result)


def test_a_step_is_read_with_valid_texts_and_parts() -> None:
    result = ((Message("user", "\ud800"),), 1, False, False, {"reward_parts": {"a\ud800": 1, 2: 0.5}, "more": 1})
    assert read_step(result) == (
        (Message("user", "\ufffd"),),
        1.0,
        False,
        False,
        {"reward_parts": {"a\ufffd": 1.0, "2": 0.5}, "more": 1},
    )


@pytest.mark.parametrize(
    "scores", [None, "ab", [1.0], [1.0, "x"], [1.0, None], [math.nan, 0.0], [10**400, 0], {0: 1, 1: 1}]
)
def test_scores_of_another_form_are_refused(scores: Any) -> None:
    with pytest.raises(ResultError):
        read_scores(scores, 2)


def test_scores_are_numbers_or_parts() -> None:
    assert read_scores([0.5, {"a": 0.25, "b": 0.5}], 2) == [(0.5, {"score": 0.5}), (0.75, {"a": 0.25, "b": 0.5})]


@pytest.mark.parametrize("reply", ["text", None, Reply(None), Reply("", "", None)])  # pyright: ignore[reportArgumentType]
def test_a_gold_reply_of_another_form_is_refused(reply: Any) -> None:
    with pytest.raises(ResultError):
        read_gold(reply)


@pytest.mark.parametrize(
    ("reward", "reward_range", "is_full"),
    [
        (1.0, (0.0, 1.0), True),
        (0.1 + 0.2 + 0.7, (0.0, 1.0), True),
        (0.999, (0.0, 1.0), False),
        (3.0, (0.0, 10.0), False),
        (10.0, (0.0, 10.0), True),
        (1.0, (-1.0, 5.0), False),
        (0.0, (-1.0, 0.0), True),
        (-1.0, (-1.0, 0.0), False),
        (1e6 - 1e-5, (0.0, 1e6), True),
        (99.0, (0.0, math.inf), False),
    ],
)
def test_the_full_reward_is_the_top_of_the_range(reward: float, reward_range: Any, is_full: bool) -> None:
    assert is_full_reward(reward, reward_range) is is_full


def test_a_total_lies_in_the_declared_range() -> None:
    check_total(1.0 + 1e-9, (0.0, 1.0))
    for total in (1.1, -0.1, math.nan, math.inf):
        with pytest.raises(ResultError, match="outside of its declared range"):
            check_total(total, (0.0, 1.0))
    with pytest.raises(ResultError):
        check_total(math.inf, (0.0, math.inf))


def test_the_range_of_an_environment_that_is_not_installed_is_0_to_1() -> None:
    assert reward_range_of("nobody/HasThis-v0") == (0.0, 1.0)
    assert reward_range_of("math/Arithmetic-v0") == (0.0, 1.0)


def test_a_task_is_named_by_its_key_wherever_it_is_given() -> None:
    env: Any = TextEnv()
    said = (Message("user", "guess"),)
    assert task_key(env, said, {}) == said
    env.key = 17
    assert task_key(env, said, {}) == 17
    assert task_key(env, said, {"key": "info"}) == "info"
    assert task_key(env, said, {"key": [1]}) == "[1]"
