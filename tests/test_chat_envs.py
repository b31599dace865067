"""Structured output, abstention and the scripted user: what they pay, by hand."""

from typing import Any

import pytest

from envs.chat.abstention import abstention
from envs.chat.appointment import Appointment
from envs.chat.structured import structured
from envs.messages import Reply
from envs.registry import make
from rewards.schema import schema_scores
from tests.makers import scored_env

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "count": {"type": "integer", "minimum": 1},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["name", "count"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("text", "surface", "scores"),
    [
        ('{"name": "a", "count": 2}', "json", (1, 1, 1)),
        ('```json\n{"name": "a", "count": 2, "tags": ["x"]}\n```', "json", (1, 1, 1)),
        ('{"name": "a", "count": 0}', "json", (1, 1, 0)),
        ('{"name": "a"}', "json", (1, 0.5, 0)),
        ('{"name": "a", "count": 2, "more": 1}', "json", (1, 1, 0)),
        ('{"name": "a", "name": "b", "count": 2}', "json", (0, 0, 0)),
        ('{"name": "a", "count": NaN}', "json", (0, 0, 0)),
        ('Here: {"name": "a", "count": 2}', "json", (0, 0, 0)),
        ("[1]", "json", (0, 0, 0)),
        ("[" * 100_000, "json", (0, 0, 0)),
        ('{"name": ' * 200 + "1" + "}" * 200, "json", (0, 0, 0)),
        ("name: a\ncount: 2\ntags: [x, y]", "yaml", (1, 1, 1)),
        ("name: a\ncount: two", "yaml", (1, 1, 0)),
        ("a: &x [1]\nname: *x\ncount: 2", "yaml", (0, 0, 0)),
        ("just words", "yaml", (0, 0, 0)),
        ('name: !!timestamp "x"\ncount: 2', "yaml", (0, 0, 0)),
        ("name: !!float ''\ncount: 2", "yaml", (0, 0, 0)),
        ("!!python/object/apply:os.system ['true']", "yaml", (0, 0, 0)),
        ("<book><name>a</name><count>2</count><tags><item>x</item></tags></book>", "xml", (1, 1, 1)),
        ("<book><name>a</name><count>two</count></book>", "xml", (1, 1, 0)),
        ("<book><name>a</name><name>b</name><count>2</count></book>", "xml", (0, 0, 0)),
        ('<!DOCTYPE x [<!ENTITY e "boom">]><book><name>&e;</name></book>', "xml", (0, 0, 0)),
        ("<book><name>a</book>", "xml", (0, 0, 0)),
        ("", "xml", (0, 0, 0)),
    ],
)
def test_data_is_read_strictly_and_judged_by_its_schema(text: str, surface: Any, scores: tuple[float, ...]) -> None:
    assert tuple(schema_scores(text, SCHEMA, surface).values()) == scores


def test_numbers_that_a_schema_cannot_reckon_with_are_not_valid() -> None:
    schema = {"type": "object", "properties": {"a": {"multipleOf": 0.01}}, "required": ["a"]}
    for text in ('{"a": 1e400}', f'{{"a": 1{"0" * 400}}}'):
        assert schema_scores(text, schema)["valid"] == 0.0
    assert schema_scores("a: .nan", schema, "yaml")["valid"] == 0.0


def test_a_schema_is_never_fetched_from_elsewhere() -> None:
    schema = {"type": "object", "properties": {"a": {"$ref": "https://example.org/schema.json"}}}
    with pytest.raises(Exception, match="Unresolvable"):
        schema_scores('{"a": 1}', schema)


@pytest.mark.parametrize("surface", ["json", "yaml", "xml"])
@pytest.mark.parametrize("level", [1, 2, 3])
def test_gold_data_fulfils_every_drawn_schema(surface: str, level: int) -> None:
    env = scored_env(structured)
    for seed in range(60):
        env.reset(seed=seed, options={"surface": surface, "level": level})
        assert env.step(env.gold_reply())[1] == 1.0, env.row


def test_abstaining_is_right_where_it_cannot_be_known_and_half_elsewhere() -> None:
    env = scored_env(abstention)
    known = set()
    for seed in range(40):
        env.reset(seed=seed)
        known.add(env.row["is_known"])
        assert ("x" in env.row["prompt"].split("=")[0]) != env.row["is_known"]
        abstained = env.step(Reply("I don't know."))[1]
        assert abstained == (0.5 if env.row["is_known"] else 1.0)
        assert env.step(Reply("-1"))[1] == 0.0
    assert known == {True, False}


def talk(env: Appointment, *replies: str) -> list[Any]:
    return [env.step(Reply(reply)) for reply in replies]


def test_the_user_tells_what_is_asked_one_thing_at_a_time() -> None:
    env = Appointment()
    env.reset(seed=0, options={"level": 3})
    details = dict(env._wish.details)
    answers = [
        step[0][0].content for step in talk(env, "Which day?", "When and who?", "Your name", "What is your NAME?")
    ]
    assert answers == [
        f"{details['day']}.",
        f"{details['time']}.",
        "Ask me for one thing at a time, please.",
        f"{details['name']}.",
    ]
    _, reward, terminated, *_ = env.step(Reply(f"Booked: {', '.join(details.values())}"))
    assert (reward, terminated) == (1.0, True)


def test_guessing_every_detail_at_once_earns_nothing() -> None:
    env = Appointment()
    env.reset(seed=0)
    every = "Monday Tuesday Wednesday Thursday Friday 9:00 10:30 14:00 16:15"
    assert env.step(Reply(f"Booked: {every}"))[1] == 0.0
    env.reset(seed=0)
    told = dict(env._wish.details)[env._wish.told]
    assert env.step(Reply(f"Booked: {told}"))[4]["reward_parts"] == {"details": 0.2, "booked": 0.0}


def test_a_conversation_without_a_booking_ends_with_nothing() -> None:
    env = Appointment()
    env.reset(seed=0)
    steps = talk(env, *["Hello."] * env.max_turns)
    assert [step[2] for step in steps] == [False] * 5 + [True]
    assert steps[-1][1] == 0.0


def test_sums_with_an_unknown_number_are_in_one_split_only() -> None:
    """`7+3-2` and `8+3-2` both become `x+3-2`, whichever splits the sums themselves are in."""
    env, prompts = make("chat/Abstention-v0"), dict[str, set[str]]()
    for split in ("train", "heldout"):
        openings = (env.reset(seed=seed, options={"split": split, "level": 1})[0] for seed in range(400))
        prompts[split] = {messages[-1].content for messages in openings}
    assert not prompts["train"] & prompts["heldout"]
    assert any(prompt.startswith("x") for prompt in prompts["heldout"])
