"""Environments that raise anything anywhere and give anything in place of everything: each costs its rollout only."""

import asyncio
import itertools
import random
import sys
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import pytest

from envs.facts import facts
from envs.messages import Message, Reply, ToolCall, ToolSpec
from envs.text_env import TextEnv
from rl.data_types import Outcome, Rollout, Task
from rl.rollouts.env_runner import EnvRunner
from rl.rollouts.group_score import with_group_scores
from rl.rollouts.play import Player, play
from tests.hostile_play import check_usable
from tests.hostile_values import RAISED, WRONG, endless
from tests.makers import make_config
from tests.scripted import CharacterChat, ScriptedEngine

pytestmark = pytest.mark.filterwarnings("ignore:coroutine '.*' was never awaited:RuntimeWarning")
"""Some of the wrong values are coroutines."""

OVER: dict[str, Any] = {"reward_parts": {"right": 1.0}}
ONE_MESSAGE = (Message("user", "?"),)
NUMBERS = itertools.count()
Some = Callable[[Sequence[Any]], list[Any]]
RUNNER = EnvRunner(4)


class Plain(TextEnv):
    """One turn, a reward of 1; subclasses spoil one thing. Counts what is made and closed, by class."""

    made: ClassVar[int] = 0
    closed: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        type(self).made += 1

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return ONE_MESSAGE, {}

    def step(self, action: Reply) -> Any:
        return (), 1.0, True, False, OVER

    def close(self) -> None:
        type(self).closed += 1


def played(env: type[TextEnv], monkeypatch: pytest.MonkeyPatch, *, num: int = 1, **rollout: Any) -> list[Rollout]:
    """`num` rollouts of one task in an environment of this class, found by its name as every other."""
    name = f"Hostile{next(NUMBERS)}"
    monkeypatch.setattr(sys.modules[__name__], name, env, raising=False)
    task = Task(0, f"{__name__}:{name}", 7, "train", "unlimited", {})
    config = make_config(rollout={"num_retries": 0, **rollout}, policy={"path": "x", "max_tokens": 200})
    engine = ScriptedEngine(lambda *_: "yes")

    async def run() -> list[Rollout]:
        player = Player(config, CharacterChat(), engine, RUNNER, 1.0)  # pyright: ignore[reportArgumentType]
        rollouts = [await play(player, task, "0-0", member, engine.open_lanes(1)[0]) for member in range(num)]
        return list(await with_group_scores(player, task, rollouts)) if num > 1 else rollouts

    rollouts = asyncio.run(run())
    for one in rollouts:
        check_is_the_environments(one)
    return rollouts


def check_is_the_environments(rollout: Rollout) -> None:
    """It counts, or says in readable words which environment did what."""
    assert rollout.outcome in (Outcome.OK, Outcome.TRUNCATED, Outcome.ENV_ERROR, Outcome.ENV_TIMEOUT), rollout.error
    if not rollout.outcome.counts:
        assert rollout.reward is None
        assert __name__ in rollout.error and "Traceback" not in rollout.error
        assert len(rollout.error.encode()) < 10_000
    check_usable(rollout)


@pytest.fixture(params=[5, pytest.param(1_000, marks=pytest.mark.slow)], ids=["some", "all"])
def some(request: pytest.FixtureRequest) -> Some:
    """Gives some of many values, others for each test; in the long tests all."""
    rng = random.Random(zlib.crc32(request.node.name.encode()))
    return lambda values: rng.sample(tuple(values), min(request.param, len(tuple(values))))


def spoiled(**attributes: Any) -> type[TextEnv]:
    return type("Spoiled", (Plain,), {"made": 0, "closed": 0, **attributes})


def giving(method: str, value: Callable[[], Any], is_async: bool) -> type[TextEnv]:
    """An environment whose method gives what `value()` gives, or raises what it raises."""

    async def later(self: Any, *_: Any, **__: Any) -> Any:
        return value()

    return spoiled(**{method: later if is_async else lambda self, *_, **__: value()})


def raising(error: Callable[[], BaseException]) -> Callable[[], Any]:
    def fail() -> Any:
        raise error()

    return fail


def is_closed(env: Any) -> bool:
    deadline = time.monotonic() + 10
    while env.closed < env.made and time.monotonic() < deadline:
        time.sleep(0.002)
    return env.closed == env.made


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("method", ["reset", "step"])
def test_whatever_a_call_raises_is_an_error_of_the_environment(
    method: str, is_async: bool, some: Some, monkeypatch: pytest.MonkeyPatch
) -> None:
    for error in (*some(RAISED), endless):
        env = giving(method, endless if error is endless else raising(error), is_async)
        (rollout,) = played(env, monkeypatch)
        assert rollout.outcome is Outcome.ENV_ERROR, error()
        assert f"{method} raised" in rollout.error or "cancelled itself" in rollout.error
        assert is_closed(env)


def test_whatever_making_or_closing_raises_costs_nothing_else(some: Some, monkeypatch: pytest.MonkeyPatch) -> None:
    for error, is_async in itertools.product(some(RAISED), (False, True)):
        (rollout,) = played(giving("__init__", raising(error), False), monkeypatch)
        assert rollout.outcome is Outcome.ENV_ERROR
        (rollout,) = played(giving("close", raising(error), is_async), monkeypatch)
        assert (rollout.outcome, rollout.reward) == (Outcome.OK, 1.0)


ATTRIBUTES = (
    "max_turns",
    "reward_range",
    "tools",
    "OPTIONS",
    "is_async",
    "has_close",
    "scores_groups",
    "step",
    "close",
)


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_attributes_that_are_wrong_or_raise_cost_their_rollout(
    attribute: str, some: Some, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value in some(WRONG):
        env = spoiled()
        setattr(env, attribute, value())  # after the class was made, which looks at some
        played(env, monkeypatch)
        assert attribute == "close" or is_closed(env) or not env.has_close  # pyright: ignore[reportAttributeAccessIssue]
    for error, num_fine in itertools.product(some(RAISED), (0, 1, 2)):
        looks = itertools.count()
        fine = getattr(Plain, attribute)

        def look(self: Any, looks: Any = looks, num_fine: int = num_fine, error: Any = error, fine: Any = fine) -> Any:
            if next(looks) < num_fine:
                return fine.__get__(self) if callable(fine) else fine
            raise error()

        env = spoiled()
        setattr(env, attribute, property(look, lambda self, value: None))
        played(env, monkeypatch)
        assert attribute == "close" or is_closed(env)


def message(**changes: Any) -> tuple[Message, ...]:
    fields: dict[str, Any] = {"role": "assistant", "content": "?", "reasoning": "", "tool_calls": (), "name": ""}
    return (Message(**{**fields, **changes}),)


STEPS: dict[str, Callable[[Any], Any]] = {
    "result": lambda value: value,
    "messages": lambda value: (value, 1.0, True, False, OVER),
    "message": lambda value: ((value,), 1.0, True, False, OVER),
    **{
        name: lambda value, name=name: (message(**{name: value}), 1.0, True, False, OVER)
        for name in ("role", "content", "reasoning", "tool_calls", "name")
    },
    "call": lambda value: (message(tool_calls=(value,)), 1.0, True, False, OVER),
    "call's name": lambda value: (message(tool_calls=(ToolCall(value),)), 1.0, True, False, OVER),
    "call's arguments": lambda value: (message(tool_calls=(ToolCall("x", value),)), 1.0, True, False, OVER),
    "call's argument": lambda value: (message(tool_calls=(ToolCall("x", {"a": value}),)), 1.0, True, False, OVER),
    "reward": lambda value: ((), value, True, False, OVER),
    "terminated": lambda value: (ONE_MESSAGE, 1.0, value, False, OVER),
    "truncated": lambda value: (ONE_MESSAGE, 1.0, False, value, OVER),
    "info": lambda value: ((), 1.0, True, False, value),
    "parts": lambda value: ((), 1.0, True, False, {"reward_parts": value}),
    "part": lambda value: ((), 1.0, True, False, {"reward_parts": {"right": value}}),
    "part's name": lambda value: ((), 1.0, True, False, {"reward_parts": {value: 1.0}}),
    "info's name": lambda value: ((), 1.0, True, False, {value: 1.0}),
}


@pytest.mark.parametrize("place", STEPS)
def test_a_step_that_gives_anything_costs_its_rollout_at_most(
    place: str, some: Some, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value, is_async in itertools.product(some(WRONG), (False, True)):
        env = giving("step", lambda value=value: STEPS[place](value()), is_async)
        (rollout,) = played(env, monkeypatch)
        assert rollout.outcome is Outcome.ENV_ERROR or 0.0 <= (rollout.reward or 0.0) <= 1.0
        assert is_closed(env)
    if place.startswith(("role", "content", "reasoning", "name", "message")):
        for value in some(WRONG):
            played(giving("reset", lambda value=value: (STEPS[place](value())[0], {}), False), monkeypatch)


@pytest.mark.parametrize("place", ["name", "description", "parameters", "property", "required"])
def test_tools_that_are_anything_cost_their_rollout_at_most(
    place: str, some: Some, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields: dict[str, Any] = {"name": "price", "description": "d", "parameters": {"type": "object"}}
    for value in some(WRONG):
        inner = {"properties": {"a": value()}} if place == "property" else {"required": value(), "properties": value()}
        tool = ToolSpec(**{**fields, **({place: value()} if place in fields else {"parameters": inner})})
        env = spoiled(tools=(tool,))
        played(env, monkeypatch)
        assert is_closed(env)


def test_scores_of_a_group_that_are_anything_cost_the_group_at_most(
    some: Some, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = [*WRONG, *(lambda value=value: [0.0, value()] for value in WRONG), *map(raising, RAISED)]
    values += [lambda value=value: [{"a": 0.0}, {"a": value()}] for value in WRONG]
    for value, is_async in itertools.product(some(values), (False, True)):
        env = giving("score_group", value, is_async)
        rollouts = played(env, monkeypatch, num=2)
        assert len({rollout.outcome for rollout in rollouts}) == 1
        assert is_closed(env)
    facts.cache_clear()


@pytest.mark.slow
def test_calls_that_never_end_cost_their_deadline_and_leave_no_more_than_their_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    may_end = threading.Event()
    before = threading.active_count()

    async def never(*_: Any, **__: Any) -> None:
        while not may_end.is_set():
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                continue

    methods = [{name: wait} for name in ("reset", "step") for wait in (lambda *_, **__: may_end.wait(60), never)]
    for method in methods:
        env = spoiled(**method)
        (rollout,) = played(env, monkeypatch, reset_timeout_s=0.2, step_timeout_s=0.2)
        assert rollout.outcome is Outcome.ENV_TIMEOUT and "_timeout_s" in rollout.error
        assert is_closed(env)
    may_end.set()
    deadline = time.monotonic() + 10
    while threading.active_count() > before + 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before + 2  # a thread and a loop that go on taking calls
