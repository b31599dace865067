"""How do many coroutines share one engine? A thread steps the engine; coroutines submit requests and await replies."""

import asyncio
import atexit
import logging
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from rl.engine.clock import Clock, Place
from rl.engine.core import Core
from rl.engine.lane import ThreadedLane
from rl.engine.protocol import EngineError, SampledReply, SamplingParams
from rl.engine.record import Recorder, Work, reply_hash
from rl.engine.request import ReplyTimeoutError, Request, fail
from rl.engine.requests import Requests
from rl.engine.script import Script
from rl.engine.seats import Seats
from rl.engine.work_times import Interval, WorkTimes
from rl.weights.source import WeightsLost, WeightSource

SHUTDOWN_TIMEOUT_S = 30.0
TELL_AFTER_S = 30.0
_log = logging.getLogger(__name__)


class ThreadedEngine:
    """A `rl.engine.protocol.Engine` around a core, which lives in the thread from its construction on.

    After an exception from the core the engine is dead: all requests and `check_alive` raise `EngineError` with its
    text.
    """

    def __init__(
        self,
        make_core: Callable[[], Core],
        lockstep_steps: int,
        num_seats: int,
        lane_timeout_s: float,
        version: int = 0,
        rests: bool = False,
    ) -> None:
        """`num_seats` lanes may send requests at the same time. `lane_timeout_s` bounds each wait for the lanes that
        the next step needs (`rl.engine.clock`), counted from the last request or end of any lane. `version` is the
        version of the core's first policy; below 0 nothing can be sampled. With `rests`, the core rests while no lane
        is open.

        Returns when the core is up; raises what `make_core` raises.
        """
        self._lane_timeout_s = lane_timeout_s
        self._clock = Clock(lockstep_steps, num_seats)
        self._seats = Seats()
        self._changed = threading.Condition()
        self._waiting_since: float | None = None
        self._requests = Requests(self._clock)
        self._loads: list[tuple[WeightSource, Future[str]]] = []
        self._failure: str | None = None
        self._is_stopping = False
        self._epoch, self._version = 0, version
        self._rests, self._is_resting = rests, False
        self._recorder = Recorder()
        self._script: Script | None = None
        self._work_times = WorkTimes()
        started: Future[Core] = Future()
        self._thread = threading.Thread(target=self._run, args=(make_core, started), name="engine", daemon=True)
        self._thread.start()
        self._core = started.result()
        atexit.register(self.shutdown)  # a thread inside C++ code must not outlive the interpreter

    @property
    def version(self) -> int:
        """The policy version that is served."""
        return self._version

    @property
    def num_steps(self) -> int:
        """Engine steps so far, those that logical time skipped included."""
        return self._clock.step

    def record(self, recorder: Recorder, script: Script | None = None) -> None:
        """Record what the engine does from now on, and with a script do what that says. Nothing is being sampled.

        With a script all lanes have seats at once, because the script says which request enters when; deadlines of
        replies do not run, because it says which were missed.
        """
        with self._changed:
            self._recorder.close()
            self._recorder, self._script = recorder, script
            if script is not None:
                self._clock.seat_all()

    def work_times(self) -> list[Interval]:
        """When it has sampled since the last call."""
        return self._work_times.take()

    def describe(self) -> str:
        """What the lanes do, in words."""
        with self._changed:
            return self._clock.describe()

    def open_lanes(self, num: int) -> list[ThreadedLane]:
        with self._changed:
            places = self._clock.open(num)
            self._seats.open(places)
            return [ThreadedLane(self, place) for place in places]

    async def seated(self, place: Place) -> None:
        """Implements `ThreadedLane.seated`."""
        with self._changed:
            self._raise_failure()
            waiting = self._seats.future_of(place)
        if waiting is not None:
            await asyncio.wrap_future(waiting)

    async def sample(self, place: Place, prompt_ids: Sequence[int], params: SamplingParams) -> SampledReply:
        """Implements `ThreadedLane.sample`."""
        self._core.check(prompt_ids, params)
        with self._changed:
            self._raise_failure()
            if self._version < 0:
                raise EngineError("nothing was published yet, and the engine must not serve the checkpoint itself")
            request = self._requests.ask(place, prompt_ids, params)
            self._waiting_since = None
            self._changed.notify()
        try:
            return await request.reply()
        except (asyncio.CancelledError, ReplyTimeoutError):
            with self._changed:
                if self._requests.withdraw(request):
                    self._changed.notify()
            raise

    def close_lane(self, place: Place) -> None:
        """Implements `ThreadedLane.close`."""
        with self._changed:
            self._clock.close(place)
            self._seats.leave(place)
            self._requests.close(place)
            self._waiting_since = None
            self._changed.notify()

    async def load_weights(self, source: WeightSource) -> str:
        future: Future[str] = Future()
        with self._changed:
            self._raise_failure()
            self._loads.append((source, future))
            self._changed.notify()
        return await asyncio.wrap_future(future)

    def check_alive(self) -> None:
        with self._changed:
            self._raise_failure()

    def shutdown(self) -> None:
        """End the thread and free the core; requests in flight get `EngineError`. Idempotent, bounded in time."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify()
        self._thread.join(SHUTDOWN_TIMEOUT_S)
        atexit.unregister(self.shutdown)
        if self._thread.is_alive():
            _log.warning("the engine did not finish its step in %.0f s; it ends with the process", SHUTDOWN_TIMEOUT_S)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise EngineError(self._failure)

    def _run(self, make_core: Callable[[], Core], started: "Future[Core]") -> None:
        try:
            self._core = make_core()
        except BaseException as error:
            started.set_exception(error)
            return
        started.set_result(self._core)
        try:
            while (work := self._next_work()) is not None:
                self._do(work)
        except BaseException as error:  # also SystemExit: every pending future must fail instead of waiting forever
            # With the traceback: the process may be replaced before it can report more.
            failure = f"the engine failed: {type(error).__name__}: {error}\n{traceback.format_exc()}"
        else:
            failure = "the engine was shut down"
        with self._changed:
            # The failure is set under the lock that guards new requests: a request that is added later fails at once.
            self._failure = failure
            requests = (*self._requests.asked, *self._requests.running)
            loads = (future for _, future in self._loads)
            fail([*(request.future for request in requests), *loads, *self._seats.futures], failure)
            self._recorder.close()
        self._core.shutdown()  # last: it may take long or raise, and the futures have failed already

    def _next_work(self) -> Work | None:
        """Wait until there is something to do; None ends the thread."""
        with self._changed:
            while not self._is_stopping:
                if self._script is not None:
                    if (work := self._scripted(self._script)) is not None:
                        return work
                    continue
                # Loads come first: all requests that are admitted after `load_weights` use the new version.
                if self._loads:
                    return Work(load=self._loads.pop(0))
                # Withdrawn requests leave before new ones enter: the engine must not hold two requests of one place.
                if withdrawn := self._requests.take_withdrawn():
                    return Work(withdrawn=withdrawn)
                is_busy = bool(self._requests.running)
                admitted = self._requests.enter(self._clock.admit(is_busy))
                self._seats.tell()  # after `admit`, which gives out seats
                for request in admitted:
                    request.admitted_at = time.monotonic()
                # Even with running requests the engine must not step past an overdue lane: logical time would depend on
                # how long the environment takes.
                is_held_up = bool(self._clock.overdue())
                if admitted or (is_busy and not is_held_up):
                    self._waiting_since = None
                    return Work(admitted=admitted)
                if self._rests and not self._is_resting and not is_busy and self._clock.is_empty:
                    return Work(rest=True)
                self._wait(is_held_up)
            return None

    def _scripted(self, script: Script) -> Work | None:
        """What the script says is next; waits for it, and returns None, while it is not there."""
        self._clock.seat()
        self._seats.tell()
        work = script.next(self._requests.asked, self._requests.running, self._loads)
        if not isinstance(work, Work):
            self._wait_for(script, work)
            return None
        self._waiting_since = None
        if work.load is not None:
            self._loads.pop(0)
        self._requests.miss(work.withdrawn)
        places = [request.place for request in work.admitted]
        self._clock.take(places)
        self._requests.enter(places)
        return work

    def _wait_for(self, script: Script, what: str | None) -> None:
        if what is None:  # the record has ended
            self._changed.wait()
            return
        self._waiting_since = self._waiting_since or time.monotonic()
        left_s = self._waiting_since + script.timeout_s - time.monotonic()
        if left_s <= 0:
            raise script.waited(what)
        if not self._changed.wait(min(left_s, TELL_AFTER_S)) and left_s > TELL_AFTER_S:
            _log.info("the replay waits for %s", what)

    def _wait(self, is_held_up: bool) -> None:
        if not is_held_up:
            self._changed.wait()
            return
        self._waiting_since = self._waiting_since or time.monotonic()
        left_s = self._waiting_since + self._lane_timeout_s - time.monotonic()
        if left_s > 0:
            self._changed.wait(left_s)
            return
        late = self._clock.give_up()
        _log.warning(
            "%d rollouts neither sent a request nor closed their lane within %.0f s; the engine goes on without them,"
            " so this run is not reproducible bit by bit",
            len(late),
            self._lane_timeout_s,
        )

    def _do(self, work: Work) -> None:
        self._is_resting = work.rest  # whatever else is done wakes the core
        if work.rest:
            self._core.rest()
            return
        if work.load is not None:
            self._load(*work.load)
            return
        if work.withdrawn:
            for request in work.withdrawn:
                self._core.abort(request.request_id)
            self._recorder.withdrawn([request.params.name for request in work.withdrawn])
            return
        for request in work.admitted:
            self._core.add(request.request_id, request.prompt_ids, request.params)
        self._step(work.admitted)

    def _step(self, admitted: Sequence[Request]) -> None:
        begun = time.time()
        outputs = self._core.step()
        self._work_times.add(begun, time.time())
        with self._changed:
            self._clock.step += 1  # before `settle`: a reply that ends in this step is due this step + lockstep
            ended, unfinished = self._requests.take(outputs, self._version)
            for request_id in unfinished:
                self._core.abort(request_id)
            hashes = {request.params.name: reply_hash(request) for request in ended}
            self._recorder.stepped([request.params.name for request in admitted], hashes)
            if self._script is not None:
                going_on = [request for request in self._requests.running if request not in ended]
                self._script.stepped(ended.keys(), going_on)
            self._requests.settle(ended)  # after what may raise: requests that still run get its error

    def _load(self, source: WeightSource, future: "Future[str]") -> None:
        try:
            if (source.epoch, source.version) <= (self._epoch, self._version):
                raise EngineError(
                    f"version {source.version} of the weights is not newer than {self._version}, the served version"
                )
            digest = self._core.load(source)
        except (EngineError, WeightsLost) as error:
            future.set_exception(error)
            return
        except BaseException as error:
            fail([future], f"loading version {source.version} of the weights failed half-way: {error}")
            raise
        with self._changed:
            self._epoch, self._version = source.epoch, source.version
            self._recorder.loaded(source.version)  # before the learner hears of it
        future.set_result(digest)
