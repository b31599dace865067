"""An engine repeats a recorded run: the same requests share each step, however long environments and updates take."""

import asyncio
import json
import random
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from envs.json_lines import read_lines
from rl.engine.protocol import EngineError, Lane
from rl.engine.record import Recorder
from rl.engine.request import ReplyTimeoutError
from rl.engine.script import Script
from rl.engine.thread import ThreadedEngine
from rl.weights.source import WeightSource
from tests.scripted import SampledTurn, sample_turn
from tests.test_engine_thread import PARAMS, ScriptedCore

Conversation = list[SampledTurn | str]


class Engines:
    """Starts engines that record to, or follow, files of a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[ThreadedEngine] = []

    def start(self, name: str, follows: str = "", num_seats: int = 4, timeout_s: float = 5.0) -> ThreadedEngine:
        engine = ThreadedEngine(ScriptedCore, 0, num_seats, 5.0)
        self.started.append(engine)
        script = Script(self.folder / follows, self.folder / "difference", timeout_s, {"0-9"}) if follows else None
        engine.record(Recorder(self.folder / name), script)
        return engine

    def text(self, name: str) -> str:
        return (self.folder / name).read_text()

    def difference(self) -> dict[str, object]:
        return json.loads(self.text("difference"))


@pytest.fixture
def engines(tmp_path: Path) -> Iterator[Engines]:
    engines = Engines(tmp_path)
    yield engines
    for engine in engines.started:
        engine.shutdown()


async def converse(
    engine: ThreadedEngine, seed: int, longer: int | None = None, timeout_s: float = 5.0
) -> list[Conversation]:
    """Eight lanes of one to three turns, and two publishes, all after pauses of 0 to 20 ms that the seed draws.

    The replies of lane `longer` have one token more. Lane 7 misses its deadline while lane 6 replies.
    """
    latency = random.Random(seed)

    async def rollout(number: int, lane: Lane) -> Conversation:
        turns: Conversation = []
        await lane.seated()
        for turn in range(1 + number % 3):
            await asyncio.sleep(latency.random() * 0.02)
            length = {6: 150, 7: 200}.get(number, 2 + (number * 5 + turn * 3) % 7) + (number == longer)
            params = replace(PARAMS, name=f"0-{number}/0/1/{turn}", timeout_s=0.05 if number == 7 else timeout_s)
            try:
                turns.append(await sample_turn(lane, (length, number), params))
            except ReplyTimeoutError as error:
                turns.append(type(error).__name__)
                break
        lane.close()
        return turns

    async def publish() -> None:
        for version in (1, 2):
            await asyncio.sleep(0.01 + latency.random() * 0.02)
            await engine.load_weights(WeightSource(version, "", "hash"))

    publishing = asyncio.create_task(publish())
    rollouts = [rollout(number, lane) for number, lane in enumerate(engine.open_lanes(8))]
    ended = await asyncio.gather(*rollouts, return_exceptions=True)
    await asyncio.wait([publishing])
    if errors := [one for one in (*ended, publishing.exception()) if isinstance(one, BaseException)]:
        raise errors[0]
    return [turns for turns in ended if not isinstance(turns, BaseException)]


async def test_a_script_repeats_batches_versions_and_withdrawn_requests(engines: Engines) -> None:
    first = await converse(engines.start("one"), seed=1)
    assert first[7] == ["ReplyTimeoutError"]
    events = list(read_lines(engines.folder / "one"))
    assert [event["load"] for event in events if "load" in event] == [1, 2]
    assert [event["out"] for event in events if "out" in event] == [["0-7/0/1/0"]]
    assert sum(len(event.get("in", ())) for event in events) == sum(map(len, first))
    for seed in (2, 3):
        again = await converse(engines.start(f"again {seed}", follows="one"), seed=seed)
        assert again == first
        assert engines.text(f"again {seed}") == engines.text("one")


async def test_a_reply_that_differs_is_told_with_what_was_sampled(engines: Engines) -> None:
    await converse(engines.start("one"), seed=1)
    engine = engines.start("other", follows="one")
    with pytest.raises(EngineError, match="the reply 0-2/0/1/0 differs in step"):
        await converse(engine, seed=1, longer=2)
    told = engines.difference()
    assert told["name"] == "0-2/0/1/0"
    assert isinstance(told["ids"], list) and isinstance(told["logprob"], list) and isinstance(told["version"], list)
    assert len(told["ids"]) == len(told["logprob"]) == len(told["version"]) > 1
    with pytest.raises(EngineError, match="differs"):
        engine.check_alive()


async def test_a_request_that_does_not_come_is_named_after_the_deadline(engines: Engines) -> None:
    (lane,) = engines.start("one").open_lanes(1)
    await sample_turn(lane, (2,), replace(PARAMS, name="0-0/0/1/0"))
    engine = engines.start("other", follows="one", timeout_s=0.1)
    (lane,) = engine.open_lanes(1)
    with pytest.raises(EngineError, match=r"waited 0.1 s for the request 0-0/0/1/0.* before step 0 of the engine"):
        await sample_turn(lane, (2,), replace(PARAMS, name="0-1/0/1/0"))


async def turns(lane: Lane, num: int, attempt: int = 1) -> None:
    """So many turns of group 0-9, member 0; then its lane closes."""
    for turn in range(num):
        await sample_turn(lane, (2,), replace(PARAMS, name=f"0-9/0/{attempt}/{turn}"))
    lane.close()


@pytest.mark.parametrize(
    ("recorded", "now", "told"),
    [
        ((2, 0), 1, "group 0-9, member 0, attempt 1 ended; in the recorded run it went on with turn 1"),
        ((1, 0), 2, "group 0-9, member 0, attempt 1 goes on with turn 1; in the recorded run it ended before"),
        ((1, 1), 2, "goes on with turn 1; in the recorded run it was given up before, as for a missed deadline"),
    ],
)
async def test_a_rollout_that_ends_at_another_turn_is_told_at_once(
    recorded: tuple[int, int], now: int, told: str, engines: Engines
) -> None:
    first = engines.start("one")
    for attempt, num in enumerate(recorded, start=1):
        (lane,) = first.open_lanes(1)
        await turns(lane, num, attempt)
    (other,) = first.open_lanes(1)
    await sample_turn(other, (2,), replace(PARAMS, name="0-2/0/1/0"))
    engine = engines.start("other", follows="one", timeout_s=600.0)
    lane, other = engine.open_lanes(2)
    with pytest.raises(EngineError, match=re.escape(told)):
        await asyncio.gather(
            turns(lane, now), asyncio.wait_for(sample_turn(other, (2,), replace(PARAMS, name="0-2/0/1/0")), 10)
        )
    assert told in str(engines.difference()["text"])


async def test_a_run_goes_on_when_its_record_cannot_be_written(
    engines: Engines, caplog: pytest.LogCaptureFixture
) -> None:
    (engines.folder / "file").touch()
    (lane,) = engines.start("file/one").open_lanes(1)
    assert (await sample_turn(lane, (2,), PARAMS)).finish == "stop"
    assert "the run goes on, but cannot be replayed" in caplog.text
