"""How do lanes that wait for a seat in the engine hear that they have one?"""

from collections.abc import Iterable
from concurrent.futures import Future

from rl.engine.clock import Place


class Seats:
    """A future for each place that waits. Not thread-safe."""

    def __init__(self) -> None:
        self._waiting: dict[Place, Future[None]] = {}

    @property
    def futures(self) -> "list[Future[None]]":
        return list(self._waiting.values())

    def open(self, places: Iterable[Place]) -> None:
        """These places were opened, some of them without a seat."""
        self._waiting |= {place: Future() for place in places if place.state == "waiting"}

    def future_of(self, place: Place) -> "Future[None] | None":
        """Done when the place has a seat; None if it has one already."""
        return self._waiting.get(place)

    def tell(self) -> None:
        """Tell the places that the clock has given seats to."""
        for place in [place for place in self._waiting if place.state != "waiting"]:
            seat = self._waiting.pop(place)
            if seat.set_running_or_notify_cancel():
                seat.set_result(None)

    def leave(self, place: Place) -> None:
        """The place was closed."""
        if seat := self._waiting.pop(place, None):
            seat.cancel()
