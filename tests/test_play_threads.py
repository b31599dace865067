"""Playing environments on threads and a loop: none blocks another, and each is closed exactly once."""

import asyncio
import functools
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from envs.event_loop import DeadlineError, call_within
from envs.facts import facts
from envs.messages import Reply
from rewards.queue_clock import in_queue
from rl.data_types import Outcome
from rl.rollouts.env_runner import EnvRunner
from tests.echo import Echo, failing, played, soon


def test_hanging_environments_do_not_use_up_the_threads() -> None:
    async def run() -> str:
        runner = EnvRunner(2)
        hanging = [runner.run(lambda: time.sleep(30), 0.1) for _ in range(6)]
        assert all(isinstance(error, TimeoutError) for error in await asyncio.gather(*hanging, return_exceptions=True))
        return await runner.run(lambda: f"alive in {os.getpid()}", 5.0)

    assert asyncio.run(run()) == f"alive in {os.getpid()}"


async def queues(asleep_s: float) -> str:
    with in_queue():
        await asyncio.sleep(0.5)
    await asyncio.sleep(asleep_s)
    return "done"


def queues_in_a_thread(asleep_s: float) -> str:
    with in_queue():
        time.sleep(0.5)
    time.sleep(asleep_s)
    return "done"


@pytest.mark.parametrize("function", [queues, queues_in_a_thread])
def test_time_in_a_queue_of_ours_counts_toward_no_deadline(function: Callable[[float], Any]) -> None:
    run = functools.partial(EnvRunner(2).run, is_async=function is queues)
    assert asyncio.run(run(lambda: function(0.0), 0.3)) == "done"
    assert call_within(lambda: function(0.0), 0.3) == "done"
    for late in (lambda: asyncio.run(run(lambda: function(5.0), 0.3)), lambda: call_within(lambda: function(5.0), 0.3)):
        with pytest.raises(DeadlineError):
            late()


def test_a_time_out_of_environment_code_is_no_deadline_of_ours() -> None:
    async def fail() -> None:
        raise TimeoutError("theirs")

    with pytest.raises(TimeoutError, match="theirs") as caught:
        asyncio.run(EnvRunner(1).run(fail, 5.0, is_async=True))
    assert not isinstance(caught.value, DeadlineError)


class AsyncEcho(Echo):
    """Echo with a step that waits."""

    async def step(self, action: Reply) -> Any:
        await asyncio.sleep(0.01)
        return Echo.step(self, action)


def test_asynchronous_environments_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    rollout = played(AsyncEcho, lambda prompt, seed: "yes", monkeypatch)
    assert (rollout.outcome, rollout.reward) == (Outcome.OK, 1.0)


def test_an_asynchronous_close_is_waited_for_by_nobody_and_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = threading.Event()

    class Closing(AsyncEcho):
        async def close(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
            await asyncio.sleep(0.01)
            closed.set()

    assert played(Closing, lambda prompt, seed: "yes", monkeypatch).reward == 1.0
    assert closed.wait(5.0)


class Closed(Echo):
    """Counts how often it is made and closed, a class of its own a test."""

    num_made = num_closed = 0

    def __init__(self) -> None:
        super().__init__()
        type(self).num_made += 1

    def close(self) -> None:
        type(self).num_closed += 1


def closing(**methods: Any) -> Any:
    return type("Closing", (Closed,), {"num_made": 0, "num_closed": 0, **methods})


def is_closed_once_each(env: Any, num: int) -> bool:
    return soon(lambda: env.num_closed == num) and not time.sleep(0.05) and (env.num_made, env.num_closed) == (num, num)


def test_every_environment_is_closed_exactly_once_however_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise KeyError("gone")

    for methods, num in (({}, 1), ({"reset": fail}, 2), ({"step": fail}, 2)):
        env = closing(**methods)
        played(env, lambda *_: "y", monkeypatch)
        assert is_closed_once_each(env, num)


def test_an_environment_that_is_made_after_its_deadline_is_closed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    may_go_on = threading.Event()

    def slow(self: Any) -> None:
        may_go_on.wait(10)
        Closed.__init__(self)

    env = closing(__init__=slow)
    rollout = played(env, lambda *_: "y", monkeypatch, reset_timeout_s=0.1)
    assert (rollout.outcome, rollout.num_attempts) == (Outcome.ENV_TIMEOUT, 2)
    may_go_on.set()
    assert is_closed_once_each(env, 2)


def test_whether_an_environment_compares_is_found_out_without_leaving_one_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    env = closing(score_group=lambda self, conversations: [0.0] * len(conversations))
    monkeypatch.setattr("envs.session.make", lambda env_id: env())
    assert facts("tests:ClosedOnce").scores_groups
    assert facts("tests:ClosedOnce").scores_groups
    assert is_closed_once_each(env, 1)


def test_an_asynchronous_close_of_a_synchronous_environment_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async def close(self: Any) -> None:
        await asyncio.sleep(0.01)
        type(self).num_closed += 1

    env = closing(close=close)
    assert played(env, lambda *_: "yes", monkeypatch).outcome is Outcome.OK
    assert is_closed_once_each(env, 1)


@pytest.mark.slow
def test_an_asynchronous_close_happens_after_the_loop_was_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    async def step(self: Any, action: Reply) -> Any:
        time.sleep(8)

    async def close(self: Any) -> None:
        await asyncio.sleep(0)
        type(self).num_closed += 1

    env = closing(step=step, close=close)
    rollout = played(env, lambda *_: "y", monkeypatch, step_timeout_s=0.1)
    assert rollout.outcome is Outcome.ENV_TIMEOUT
    assert is_closed_once_each(env, 2)


@pytest.mark.slow
def test_a_step_that_blocks_although_it_is_called_asynchronous_does_not_block_the_engines_loop() -> None:
    async def run() -> bool:
        call = EnvRunner(1).run(lambda: time.sleep(5), 0.2, is_async=True)
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.01)
                ticks += 1

        ticking = asyncio.create_task(tick())
        with pytest.raises(TimeoutError):
            await call
        ticking.cancel()
        return ticks > 3

    assert asyncio.run(run())


@pytest.mark.slow
def test_a_thousand_waiting_episodes_take_as_long_as_one() -> None:
    async def run() -> list[int]:
        runner = EnvRunner(1)

        async def wait(number: int) -> int:
            await asyncio.sleep(0.5)
            return number

        calls = [runner.run(lambda number=number: wait(number), 5.0, is_async=True) for number in range(1000)]
        return await asyncio.wait_for(asyncio.gather(*calls), 20.0)

    assert asyncio.run(run()) == list(range(1000))


@pytest.mark.parametrize("waits", [False, True])
def test_an_environment_that_cancels_itself_does_not_cancel_the_rollout(
    waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def step(self: Any, action: Reply) -> Any:
        raise asyncio.CancelledError

    def fail() -> Any:
        raise asyncio.CancelledError

    env = type("Cancelling", (Echo,), {"step": step}) if waits else failing("step", fail)
    rollout = played(env, lambda *_: "hm", monkeypatch)
    assert (rollout.outcome, rollout.reward) == (Outcome.ENV_ERROR, None)
    assert "ancelled" in rollout.error


@pytest.mark.slow
def test_asynchronous_code_that_blocks_its_loop_is_left_behind() -> None:
    async def run() -> Any:
        runner = EnvRunner(1)

        async def block() -> None:
            time.sleep(30)

        with pytest.raises(TimeoutError):
            await runner.run(block, 0.1, is_async=True)

        async def answer() -> str:
            return "alive"

        return await runner.run(answer, 5.0, is_async=True)

    assert asyncio.run(run()) == "alive"
