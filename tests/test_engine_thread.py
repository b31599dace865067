"""Lanes, logical time and failures of the engine's thread, on a scripted core that needs no vLLM."""

import asyncio
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace

import pytest

from rl.engine.core import StepOutput
from rl.engine.protocol import EngineError, Lane, SamplingParams
from rl.engine.thread import ThreadedEngine, ThreadedLane
from rl.weights.source import WeightsLost, WeightSource
from tests.scripted import SampledTurn, sample_turn

PARAMS = SamplingParams(max_reply_tokens=8, temperature=1.0, top_p=1.0, seed=0, stop_ids=())


class ScriptedCore:
    """Replies to a prompt (n, ...) with n tokens, one a step; a token is the number of requests in that step."""

    def __init__(self) -> None:
        self.left: dict[str, int] = {}
        self.batches: list[tuple[int, ...]] = []
        self.aborted: list[str] = []
        self.error: BaseException | None = None
        self.logprob = -1.0
        self.is_shut_down = False

    def check(self, prompt_ids: Sequence[int], params: SamplingParams) -> None:
        if not prompt_ids:
            raise EngineError("an empty prompt")

    def add(self, request_id: str, prompt_ids: Sequence[int], params: SamplingParams) -> None:
        self.left[request_id] = prompt_ids[0]

    def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)
        del self.left[request_id]

    def step(self) -> list[StepOutput]:
        time.sleep(0.001)
        if self.error is not None:
            raise self.error
        self.batches.append(tuple(int(request_id.split("-")[0]) for request_id in self.left))
        token, outputs = len(self.left), []
        for request_id in list(self.left):
            self.left[request_id] -= 1
            finish = None if self.left[request_id] else "stop"
            outputs.append(StepOutput(request_id, [token], {"logprob": [self.logprob]}, finish))
            if finish:
                del self.left[request_id]
        return outputs

    def rest(self) -> None:
        self.batches.append(())

    def load(self, source: WeightSource) -> str:
        self.logprob = -1.0 - source.version
        if source.hash == "damaged":
            raise EngineError("damaged")
        if source.hash == "lost":
            raise WeightsLost("lost")
        if self.error is not None:
            raise self.error
        return source.hash

    def shutdown(self) -> None:
        self.is_shut_down = True


Start = Callable[..., tuple[ThreadedEngine, ScriptedCore]]


@pytest.fixture
def start() -> Iterator[Start]:
    engines = []

    def start(
        lockstep_steps: int = 0, lane_timeout_s: float = 5.0, num_seats: int = 100, rests: bool = False
    ) -> tuple[ThreadedEngine, ScriptedCore]:
        core = ScriptedCore()
        engines.append(ThreadedEngine(lambda: core, lockstep_steps, num_seats, lane_timeout_s, rests=rests))
        return engines[-1], core

    yield start
    for engine in engines:
        engine.shutdown()
    assert not [thread for thread in threading.enumerate() if thread.name == "engine"]


async def converse(engine: ThreadedEngine, latency_seed: int) -> list[list[SampledTurn]]:
    """Six lanes of one to three turns each, with pauses of 0 to 20 ms before each request."""
    latency = random.Random(latency_seed)

    async def rollout(number: int, lane: Lane) -> list[SampledTurn]:
        turns = []
        await lane.seated()
        for turn in range(1 + number % 3):
            await asyncio.sleep(latency.random() * 0.02)
            turns.append(await sample_turn(lane, (2 + (number * 5 + turn * 3) % 7, number), PARAMS))
        await asyncio.sleep(latency.random() * 0.02)
        lane.close()
        return turns

    return await asyncio.gather(*(rollout(number, lane) for number, lane in enumerate(engine.open_lanes(6))))


async def wait_until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.002)


@pytest.mark.parametrize("lockstep_steps", [0, 2])
async def test_no_more_lanes_are_in_than_there_are_seats_and_all_get_one(start: Start, lockstep_steps: int) -> None:
    engine, core = start(lockstep_steps, num_seats=3)
    num_in, most_in = 0, 0

    async def rollout(number: int, lane: ThreadedLane) -> None:
        nonlocal num_in, most_in
        await lane.seated()
        num_in += 1
        most_in = max(most_in, num_in)
        await asyncio.sleep(0.005 * (number % 3))
        await sample_turn(lane, (2 + number % 4,), PARAMS)
        num_in -= 1
        lane.close()

    await asyncio.gather(*(rollout(number, lane) for number, lane in enumerate(engine.open_lanes(20))))
    assert most_in == 3
    assert max(map(len, core.batches)) <= 3


async def test_an_engine_rests_only_while_no_lane_is_open(start: Start) -> None:
    """A rest is an empty batch in the core's record."""
    engine, core = start(rests=True)
    await wait_until(lambda: core.batches == [()])
    first, second = engine.open_lanes(2)
    await sample_turn(first, (2,), PARAMS)
    first.close()
    await sample_turn(second, (1,), PARAMS)
    await asyncio.sleep(0.05)  # the second lane's environment takes its time
    assert core.batches.count(()) == 1
    second.close()
    await wait_until(lambda: core.batches.count(()) == 2)
    await engine.load_weights(WeightSource(1, "place", "hash"))
    await wait_until(lambda: core.batches.count(()) == 3)
    await asyncio.sleep(0.05)
    assert core.batches.count(()) == 3  # once for each time that it became idle


async def test_a_lane_that_waits_for_a_seat_hears_of_the_engines_end(start: Start) -> None:
    engine, core = start(num_seats=1)
    one, two = engine.open_lanes(2)
    waiting = asyncio.create_task(two.seated())
    reply = asyncio.create_task(sample_turn(one, (1000,), PARAMS))
    await wait_until(lambda: bool(core.left))
    core.error = ValueError("broken")
    for task in (waiting, reply):
        with pytest.raises(EngineError, match="broken"):
            await task


@pytest.mark.slow
async def test_a_replys_deadline_counts_from_its_admission_and_says_so(start: Start) -> None:
    engine, core = start(num_seats=1)
    lanes = engine.open_lanes(6)
    params = replace(PARAMS, timeout_s=0.5)

    async def rollout(lane: ThreadedLane) -> int:
        await lane.seated()
        turn = await sample_turn(lane, (150,), params)  # 150 steps of a millisecond or more
        lane.close()
        return len(turn.reply_ids)

    assert await asyncio.gather(*map(rollout, lanes)) == [150] * 6  # all together take longer than the deadline
    (slow,) = engine.open_lanes(1)
    with pytest.raises(EngineError, match=r"longer than 0\.5 s \(rollout\.reply_timeout_s\)"):
        await sample_turn(slow, (100_000,), params)
    await wait_until(lambda: not core.left)


@pytest.mark.parametrize("num_seats", [100, 2])
async def test_with_lockstep_batches_do_not_depend_on_latency(start: Start, num_seats: int) -> None:
    engine, core = start(lockstep_steps=3, num_seats=num_seats)
    first = await converse(engine, latency_seed=1)
    num_batches = len(core.batches)
    second = await converse(engine, latency_seed=2)
    assert first == second
    before = [[number % 6 for number in batch] for batch in core.batches[:num_batches]]
    after = [[number % 6 for number in batch] for batch in core.batches[num_batches:]]
    assert before == after


async def test_without_lockstep_all_rollouts_finish_too(start: Start) -> None:
    engine, _ = start()
    turns = await converse(engine, latency_seed=1)
    assert [len(lane) for lane in turns] == [1, 2, 3, 1, 2, 3]
    assert [len(lane[0].reply_ids) for lane in turns] == [2, 7, 5, 3, 8, 6]


async def test_the_engine_gives_up_a_lane_that_stays_silent(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    engine, _ = start(lockstep_steps=2, lane_timeout_s=0.05)
    silent, lane = engine.open_lanes(2)
    with caplog.at_level(logging.WARNING):
        turn = await sample_turn(lane, (3,), PARAMS)
    assert len(turn.reply_ids) == 3
    assert "1 rollouts neither sent a request nor closed" in caplog.text
    assert len((await sample_turn(silent, (2,), PARAMS)).reply_ids) == 2


async def test_the_wait_for_a_silent_lane_begins_again_whenever_another_lane_does_something(
    start: Start, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1.0]
    monkeypatch.setattr("rl.engine.thread.time", SimpleNamespace(monotonic=lambda: now[0], time=lambda: now[0]))
    engine, _ = start(lockstep_steps=2, lane_timeout_s=5.0)
    silent, *others = engine.open_lanes(4)
    with caplog.at_level(logging.WARNING):
        for now[0], lane in zip((1.0, 5.0, 9.0), others, strict=True):
            lane.close()
            await wait_until(lambda: engine._waiting_since == now[0])
        await sample_turn(silent, (2,), PARAMS)
    assert caplog.text == ""


async def test_cancelling_withdraws_the_request_and_frees_the_lane(start: Start) -> None:
    engine, core = start(lockstep_steps=2)
    (lane,) = engine.open_lanes(1)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(sample_turn(lane, (1000,), PARAMS), 0.05)
    assert len((await sample_turn(lane, (2,), PARAMS)).reply_ids) == 2
    assert core.aborted == ["0-0"]
    assert core.left == {}


async def test_an_error_of_the_core_reaches_every_caller(start: Start) -> None:
    engine, core = start()
    lanes = engine.open_lanes(3)
    waiting = [asyncio.create_task(sample_turn(lane, (1000,), PARAMS)) for lane in lanes[:2]]
    await wait_until(lambda: len(core.left) == 2)
    core.error = ValueError("the matrix is singular")
    for task in waiting:
        with pytest.raises(EngineError, match="ValueError: the matrix is singular"):
            await task
    with pytest.raises(EngineError, match="singular"):
        await sample_turn(lanes[2], (1,), PARAMS)
    with pytest.raises(EngineError, match="singular"):
        await engine.load_weights(WeightSource(1, "", ""))
    with pytest.raises(EngineError, match="singular"):
        engine.check_alive()
    assert core.is_shut_down


async def test_an_engine_that_exits_leaves_nobody_waiting(start: Start) -> None:
    engine, core = start()
    (lane,) = engine.open_lanes(1)
    core.error = SystemExit("vLLM gave up")
    with pytest.raises(EngineError, match="SystemExit: vLLM gave up"):
        await sample_turn(lane, (3,), PARAMS)


async def test_a_logprob_that_is_not_finite_fails_its_request_only(start: Start) -> None:
    engine, core = start()
    one, two = engine.open_lanes(2)
    core.logprob = float("nan")
    with pytest.raises(EngineError, match="not finite"):
        await sample_turn(one, (5,), PARAMS)
    core.logprob = -0.25
    assert (await sample_turn(two, (2,), PARAMS)).reply_logprobs == (-0.25, -0.25)
    assert core.left == {}


async def test_tokens_carry_the_version_that_sampled_them(start: Start) -> None:
    engine, core = start()
    (lane,) = engine.open_lanes(1)
    reply = asyncio.create_task(sample_turn(lane, (200,), PARAMS))
    await wait_until(lambda: len(core.batches) > 5)
    assert await engine.load_weights(WeightSource(4, "", "hash")) == "hash"
    turn = await reply
    assert set(turn.policy_versions) == {0, 4}
    assert list(turn.policy_versions) == sorted(turn.policy_versions)
    # The core computes each logprob from the version that it holds.
    assert turn.reply_logprobs == tuple(-1.0 - version for version in turn.policy_versions)


async def test_versions_only_grow_and_a_refused_one_changes_nothing(start: Start) -> None:
    engine, _ = start()
    await engine.load_weights(WeightSource(2, "", ""))
    for version in (2, 1):
        with pytest.raises(EngineError, match=f"version {version} of the weights is not newer than 2"):
            await engine.load_weights(WeightSource(version, "", ""))
    with pytest.raises(EngineError, match="damaged"):
        await engine.load_weights(WeightSource(3, "", "damaged"))
    with pytest.raises(WeightsLost):  # not an error of the engine, which would be replaced
        await engine.load_weights(WeightSource(3, "", "lost"))
    engine.check_alive()
    assert engine.version == 2


async def test_versions_of_a_learner_that_went_back_to_a_checkpoint_are_newer(start: Start) -> None:
    engine, _ = start()
    await engine.load_weights(WeightSource(7, "", ""))
    await engine.load_weights(WeightSource(5, "", "", epoch=1))
    assert engine.version == 5
    for source in (WeightSource(8, "", ""), WeightSource(5, "", "", epoch=1)):
        with pytest.raises(EngineError, match="is not newer than 5"):
            await engine.load_weights(source)


async def test_weights_loaded_half_way_end_the_engine(start: Start) -> None:
    engine, core = start()
    core.error = RuntimeError("out of memory")
    with pytest.raises(EngineError, match="version 1 of the weights failed half-way: out of memory"):
        await engine.load_weights(WeightSource(1, "", ""))
    with pytest.raises(EngineError, match="out of memory"):
        while True:  # until the thread has noted it
            engine.check_alive()
            await asyncio.sleep(0.001)


async def test_shutdown_fails_what_is_in_flight(start: Start) -> None:
    engine, core = start()
    (lane,) = engine.open_lanes(1)
    reply = asyncio.create_task(sample_turn(lane, (100_000,), PARAMS))
    await wait_until(lambda: bool(core.left))
    await asyncio.to_thread(engine.shutdown)
    with pytest.raises(EngineError, match="shut down"):
        await reply
    engine.shutdown()


async def test_a_closed_lane_cannot_ask(start: Start) -> None:
    engine, _ = start(lockstep_steps=2)
    (lane,) = engine.open_lanes(1)
    lane.close()
    lane.close()
    with pytest.raises(EngineError, match="lane 0 cannot ask: it is closed"):
        await sample_turn(lane, (1,), PARAMS)


def test_an_error_of_construction_is_raised() -> None:
    def fail() -> ScriptedCore:
        raise OSError("no such checkpoint")

    with pytest.raises(OSError, match="no such checkpoint"):
        ThreadedEngine(fail, 0, 100, 1.0)
