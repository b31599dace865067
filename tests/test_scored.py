"""The two short ways to write an environment: rows with a score function, and a plain class whose methods are tools."""

import asyncio
import pickle
from typing import Any, Literal

import numpy as np
import pytest

from envs.event_loop import settle
from envs.messages import Message, Reply, ToolCall
from envs.scored import Row, RowError, scored
from envs.text_env import EnvironmentOptionError, TextEnv
from envs.tool_class import ToolClassEnv
from envs.tool_specs import tool_spec
from rewards.exact import text_correct

CAPITALS = [
    {"prompt": f"Capital of {country}?", "gold": city, "split": split}
    for country, city, split in (("France", "Paris", "train"), ("Italy", "Rome", "train"), ("Peru", "Lima", "heldout"))
]


def is_gold(reply: Reply, row: Row) -> float:
    return text_correct(reply.text, row["gold"])


@scored(rows=CAPITALS)
def capitals(reply, row):
    """Name a capital."""
    return is_gold(reply, row)


@scored(draw=lambda rng, digits=1: {"prompt": f"{rng.integers(10**digits)}?", "note": "mine"})
async def judged(reply, row):
    await asyncio.sleep(0)
    return {"half": 0.5 * (row["note"] == "mine"), "text": 0.5 * bool(reply.text)}


def test_rows_with_a_score_function_are_an_environment() -> None:
    env = capitals()
    assert isinstance(env, TextEnv)
    assert capitals.__doc__ == "Name a capital."
    messages, info = env.reset(seed=0, options={"split": "heldout"})
    assert messages == (Message("user", "Capital of Peru?"),)
    assert info == {"key": "Capital of Peru?"}
    assert env.gold_reply() == Reply("Lima")
    assert env.step(Reply("lima")) == ((), 1.0, True, False, {"reward_parts": {"score": 1.0}})
    assert pickle.loads(pickle.dumps(env)).step(Reply("Rome"))[1] == 0.0


def test_one_row_can_be_asked_for() -> None:
    env = capitals()
    assert [env.reset(seed=9, options={"row": row})[0][0].content for row in (0, 1)] == [
        "Capital of France?",
        "Capital of Italy?",
    ]
    with pytest.raises(EnvironmentOptionError, match="row must be 0 to 1 in split 'train', got 2"):
        env.reset(seed=0, options={"row": 2})


def test_drawn_rows_take_options_and_scores_may_be_asynchronous() -> None:
    env = judged()
    assert env.OPTIONS == {"digits": 1}
    assert env.is_async
    messages, _ = env.reset(seed=1, options={"digits": 8})
    assert len(messages[0].content) > 5
    assert settle(env.step(Reply("x")))[1:] == (1.0, True, False, {"reward_parts": {"half": 0.5, "text": 0.5}})
    with pytest.raises(NotImplementedError, match="the rows of judged have no 'gold'"):
        env.gold_reply()


@pytest.mark.parametrize(
    ("rows", "wrong"),
    [
        ([{"question": "?"}], "row 0 must be a mapping with a prompt"),
        (["?"], "row 0 must be a mapping with a prompt"),
        ([*CAPITALS, {"prompt": "?", "split": "test"}], "row 3: split must be 'train' or 'heldout', got 'test'"),
        ([{"prompt": [{"rolle": "user"}], "split": "train"}], "a prompt is text or a list of messages"),
    ],
)
def test_a_row_that_cannot_be_played_is_named(rows: Any, wrong: str) -> None:
    with pytest.raises(RowError, match=wrong):
        scored(rows=rows)(is_gold)().reset(seed=0)


def test_a_split_without_rows_says_what_to_do() -> None:
    with pytest.raises(EnvironmentOptionError, match="no row is in split 'heldout': give more rows, or each a 'split'"):
        scored(rows=CAPITALS[:2])(is_gold)().reset(seed=0, options={"split": "heldout"})


def test_rows_are_loaded_once_for_each_choice_of_options() -> None:
    loads = []

    def load(kind: str = "a") -> list[dict[str, str]]:
        loads.append(kind)
        return [{"prompt": kind, "split": "train"}]

    env = scored(rows=load)(is_gold)
    for kind in ("a", "b", "a"):
        assert env().reset(seed=0, options={"kind": kind})[0][0].content == kind
    assert loads == ["a", "b"]


def test_an_option_needs_a_default_and_there_is_one_source_of_rows() -> None:
    with pytest.raises(TypeError, match="parameter level is an option and needs a default"):

        @scored(draw=lambda rng, level: {})
        def one(reply, row): ...

    with pytest.raises(TypeError, match="give either rows or draw"):
        scored()


class Lamp:
    """Switch on the right lamp."""

    max_turns = 3

    def reset(self, rng: np.random.Generator, split: str, count: int = 2) -> str:
        self.wanted = int(rng.integers(count))
        self.lit: set[int] = set()
        self.key = f"{split} {self.wanted}"
        return f"Switch on lamp {self.wanted}."

    def switch(self, lamp: int, state: Literal["on", "off"] = "on", also: list[int] | None = None) -> str:
        """Switch lamps.

        Args:
            lamp: Its number.
            state: What to do.
        """
        for number in (lamp, *(also or ())):
            (self.lit.add if state == "on" else self.lit.discard)(number)
        return f"{len(self.lit)} lit"

    def score(self, reply: Reply) -> float:
        return float(self.lit == {self.wanted})


class SlowLamp(Lamp):
    async def switch(self, lamp: int) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Switch a lamp on."""
        await asyncio.sleep(0.001)
        return super().switch(lamp)


@pytest.mark.parametrize("plain", [Lamp, SlowLamp])
def test_a_plain_class_is_an_environment_with_tools(plain: type) -> None:
    env = ToolClassEnv(plain)
    assert env.is_async == (plain is SlowLamp)
    messages, info = settle(env.reset(seed=3, options={"count": 5}))
    assert (messages[0].content, info["key"]) == (f"Switch on lamp {env.inner.wanted}.", f"train {env.inner.wanted}")
    results, reward, terminated, *_ = settle(env.step(Reply("", "", (ToolCall("switch", {"lamp": env.inner.wanted}),))))
    assert (results, reward, terminated) == ((Message("tool", "1 lit", name="switch"),), 0.0, False)
    assert settle(env.step(Reply("done")))[1] == 1.0
    assert (env.max_turns, env.OPTIONS) == (3, {"count": 2})


def test_a_tools_schema_comes_from_its_hints_and_docstring() -> None:
    spec = tool_spec(Lamp.switch)
    assert (spec.name, spec.description) == ("switch", "Switch lamps.")
    assert spec.parameters["required"] == ["lamp"]
    assert spec.parameters["properties"] == {
        "lamp": {"type": "integer", "description": "Its number."},
        "state": {"default": "on", "enum": ["on", "off"], "type": "string", "description": "What to do."},
        "also": {"default": None, "anyOf": [{"items": {"type": "integer"}, "type": "array"}, {"type": "null"}]},
    }


def test_arguments_of_other_types_are_told_to_the_policy() -> None:
    env = ToolClassEnv(Lamp)
    env.reset(seed=0)

    def said(**arguments: Any) -> str:
        return env.step(Reply("", "", (ToolCall("switch", arguments),)))[0][0].content

    assert said(lamp=0, state="dim") == "error: state must be string, got 'dim'"
    assert said(lamp=0, also=["x"]).startswith("error: also input should be a valid integer")
    assert said(lamp=1, also=[2, 3]) == "3 lit"


def test_what_a_tool_gives_or_raises_is_valid_text_of_bounded_length() -> None:
    class Odd(Lamp):
        def say(self, what: str) -> str:
            """Say it."""
            if what == "raise":
                raise ValueError("\ud800" + "x" * 1_000_000)
            return "\ud800"

    env = ToolClassEnv(Odd)
    env.reset(seed=0)

    def said(name: str, what: str) -> str:
        return env.step(Reply("", "", (ToolCall(name, {"what": what}),)))[0][0].content

    assert said("say", "x") == "\ufffd"
    assert said("say", "raise").startswith("error: \ufffdxxx") and len(said("say", "raise")) < 3000
    assert said("\ud800", "x").startswith("error: no tool named \ufffd; tools: ")


def test_a_method_that_waits_without_saying_so_is_an_error() -> None:
    class Hidden(Lamp):
        def switch(self, lamp: int) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
            """Switch."""
            return asyncio.sleep(1)

    env = ToolClassEnv(Hidden)
    env.reset(seed=0)
    with pytest.raises(TypeError, match="declare it with async def"):
        env.step(Reply("", "", (ToolCall("switch", {"lamp": 1}),)))
