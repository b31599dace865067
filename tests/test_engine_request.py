"""What becomes of requests that wait for the engine when it dies."""

import asyncio
import threading
from concurrent.futures import Future

import pytest

from rl.engine.core import StepOutput
from rl.engine.protocol import EngineError, SampledReply
from rl.engine.request import fail
from rl.engine.thread import ThreadedEngine
from tests.scripted import sample_turn
from tests.test_engine_thread import PARAMS, ScriptedCore


class FailsLate(ScriptedCore):
    def __init__(self) -> None:
        super().__init__()
        self.is_stepping, self.may_fail = threading.Event(), threading.Event()

    def step(self) -> list[StepOutput]:
        self.is_stepping.set()
        self.may_fail.wait()
        raise ValueError("the matrix is singular")


async def test_a_lane_whose_request_the_dead_engine_never_took_can_be_closed() -> None:
    core = FailsLate()
    engine = ThreadedEngine(lambda: core, lockstep_steps=0, num_seats=2, lane_timeout_s=5.0)
    first, second = engine.open_lanes(2)
    sampling = asyncio.create_task(sample_turn(first, (3,), PARAMS))
    await asyncio.to_thread(core.is_stepping.wait)
    waiting = asyncio.create_task(sample_turn(second, (3,), PARAMS))
    await asyncio.sleep(0.05)  # it has asked
    core.may_fail.set()
    for task in (sampling, waiting):
        with pytest.raises(EngineError, match="the matrix is singular"):
            await task
    second.close()
    first.close()
    engine.shutdown()


def test_a_request_that_has_failed_keeps_its_reason() -> None:
    future: Future[SampledReply] = Future()
    fail([future], "the engine failed")
    fail([future], "the lane was closed")
    assert str(future.exception()) == "the engine failed"
