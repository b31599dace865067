"""Which requests does an engine have: those that were asked for, those that it samples, those that it must forget?"""

from collections.abc import Iterable, Sequence

from rl.engine.clock import Clock, Place
from rl.engine.core import StepOutput
from rl.engine.protocol import EngineError, SampledReply, SamplingParams
from rl.engine.request import ReplyTimeoutError, Request, fail

Ended = dict[Request, SampledReply | EngineError]
"""Requests and their results."""


class Requests:
    """The requests of one engine. Not thread-safe; each change of a request is told to the clock."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._num = 0
        self._asked: dict[Place, Request] = {}
        self._running: dict[str, Request] = {}
        self._withdrawn: list[Request] = []

    @property
    def asked(self) -> list[Request]:
        return list(self._asked.values())

    @property
    def running(self) -> list[Request]:
        return list(self._running.values())

    def ask(self, place: Place, prompt_ids: Sequence[int], params: SamplingParams) -> Request:
        """A new request. Raises `EngineError` if its place cannot have one."""
        try:
            self._clock.ask(place)
        except ValueError as error:
            raise EngineError(str(error)) from error
        request = Request(f"{place.number}-{self._num}", place, tuple(prompt_ids), params)
        self._num += 1
        self._asked[place] = request
        return request

    def enter(self, places: Iterable[Place]) -> list[Request]:
        """The requests of these places, which the clock has admitted: they are sampled from now on."""
        entered = [self._asked.pop(place) for place in places]
        self._running |= {request.request_id: request for request in entered}
        return entered

    def take(self, outputs: Iterable[StepOutput], version: int) -> tuple[Ended, list[str]]:
        """Add what a step of this version sampled.

        Returns the requests that have results, which `settle` ends, and ids of those that the core would go on with.
        """
        ended: Ended = {}
        unfinished = []
        for output in outputs:
            request = self._running.get(output.request_id)
            if request is None:  # withdrawn
                continue
            result = request.take(output, version)
            if result is not None:
                ended[request] = result
                unfinished += [output.request_id] if output.finish is None else []
        return ended, unfinished

    def settle(self, ended: Ended) -> None:
        """Tell the results to those who wait for them."""
        for request, result in ended.items():
            del self._running[request.request_id]
            self._clock.finish(request.place)
            request.settle(result)

    def withdraw(self, request: Request) -> bool:
        """Forget the request; False if its reply came at the same moment."""
        if self._asked.get(request.place) is request:
            del self._asked[request.place]
        elif self._running.pop(request.request_id, None) is not None:
            self._withdrawn.append(request)
        else:
            return False
        self._clock.finish(request.place)
        return True

    def miss(self, requests: Iterable[Request]) -> None:
        """These missed their deadlines in the run that is repeated, in which they were withdrawn."""
        error = ReplyTimeoutError("the reply was withdrawn in the recorded run")
        self.settle(dict.fromkeys(requests, error))

    def take_withdrawn(self) -> list[Request]:
        """Requests that the core must forget; each is told once."""
        withdrawn, self._withdrawn = self._withdrawn, []
        return withdrawn

    def close(self, place: Place) -> None:
        """Fail the request of a place that was closed, if it has not entered yet."""
        if request := self._asked.pop(place, None):
            fail([request.future], "the lane was closed")
