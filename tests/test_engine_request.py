"""What becomes of requests that wait for the engine when it dies."""

import asyncio
import threading
from concurrent.futures import Future

import numpy as np
import pytest

from rl.engine.clock import Place
from rl.engine.core import StepOutput
from rl.engine.protocol import EngineError, SampledReply
from rl.engine.request import Request, fail
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


def test_columns_of_all_tokens_are_split_where_the_reply_begins_and_the_last_token_has_none() -> None:
    request = Request("0", Place(0, 0), (5, 6), PARAMS)
    assert request.take(StepOutput("0", [7], {"logprob": [-0.5]}, None), version=3) is None
    routes = np.array([[[1, 2]], [[3, 4]], [[5, 6]]], np.uint8)
    reply = request.take(StepOutput("0", [8], {"logprob": [-1.0]}, "stop", {"routes": routes}), version=3)
    assert isinstance(reply, SampledReply)
    assert reply.prompt_columns["routes"].tolist() == [[[1, 2]], [[3, 4]]]
    assert reply.tokens.columns["routes"].tolist() == [[[5, 6]], [[0, 0]]]


def test_a_request_that_has_failed_keeps_its_reason() -> None:
    future: Future[SampledReply] = Future()
    fail([future], "the engine failed")
    fail([future], "the lane was closed")
    assert str(future.exception()) == "the engine failed"
