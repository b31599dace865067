"""When may a lane's request enter the engine? Logical time, counted in engine steps.

With a lockstep of D steps, a lane whose reply was finished by step s is due at s + D: what it asks next enters exactly
then, and the engine does not go beyond that step before the lane has asked or closed. Which requests share a step is
thus a function of the replies alone, never of how long environments took. With D = 0 requests enter as they come.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(eq=False, slots=True)
class Place:
    """A lane as the clock sees it."""

    number: int
    due: int
    state: Literal["idle", "asked", "running", "closed"] = "idle"
    is_awaited: bool = True
    """False once the engine has given up waiting for its next request."""


class Clock:
    """Admits requests. Not thread-safe; `step` is the number of engine steps done."""

    def __init__(self, lockstep_steps: int) -> None:
        self._lockstep_steps = lockstep_steps
        self._num_opened = 0
        self._idle: set[Place] = set()
        self._asked: list[Place] = []
        self.step = 0

    @property
    def num_asked(self) -> int:
        return len(self._asked)

    def open(self, num: int) -> list[Place]:
        """Open places that are due at once."""
        places = [Place(self._num_opened + i, self.step) for i in range(num)]
        self._num_opened += num
        self._idle.update(places)
        return places

    def ask(self, place: Place) -> None:
        """The place has a request. Raises `ValueError` when it is closed, or has one already."""
        if place.state != "idle":
            raise ValueError(f"lane {place.number} cannot ask: it is {place.state}")
        self._idle.remove(place)
        place.state = "asked"
        self._asked.append(place)

    def admit(self, is_busy: bool) -> list[Place]:
        """Take the places whose requests enter now; none while some place is `overdue`.

        An engine without running requests (`is_busy` False) first jumps ahead to when the next place is due.
        """
        if not self._lockstep_steps:
            ready = self._asked.copy()
        else:
            if not is_busy:
                waiting = [place.due for place in (*self._awaited(), *self._asked)]
                self.step = max(self.step, min(waiting, default=0))
            if self.overdue():
                return []
            due = (place for place in self._asked if place.due <= self.step)
            ready = sorted(due, key=lambda place: place.number)
        for place in ready:
            self._asked.remove(place)
            place.state = "running"
        return ready

    def overdue(self) -> list[Place]:
        """Places without a request that the next step waits for."""
        if not self._lockstep_steps:
            return []
        return [place for place in self._awaited() if place.due <= self.step]

    def give_up(self) -> list[Place]:
        """Stop waiting for the places that are overdue. What they ask later enters at once."""
        late = self.overdue()
        for place in late:
            place.is_awaited = False
        return late

    def finish(self, place: Place) -> None:
        """The place's request is over: replied to, failed or withdrawn."""
        if place.state == "asked":
            self._asked.remove(place)
        if place.state != "closed":
            place.state = "idle"
            place.due = self.step + self._lockstep_steps
            place.is_awaited = True
            self._idle.add(place)

    def close(self, place: Place) -> None:
        """Nothing more will be asked. Idempotent; a request in the engine goes on."""
        if place.state == "asked":
            self._asked.remove(place)
        self._idle.discard(place)
        place.state = "closed"

    def _awaited(self) -> list[Place]:
        return [place for place in self._idle if place.is_awaited]
