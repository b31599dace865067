"""When is a lane's request admitted to the engine? The clock admits by logical time, counted in engine steps.

With a lockstep of D steps, a lane whose reply was finished by step s is due at s + D. Its next request enters exactly
then, and the engine does not go beyond that step before the lane has sent a request or closed. Which requests share a
step is therefore a function of the replies alone and never of how long environments take. With D = 0 requests enter
immediately.

There is one seat for each request that the engine samples at once. A lane without a seat waits: the environment of its
rollout is not open, and no deadline runs. A seat becomes free at the logical time at which its lane's next request
would have been due, so seats do not depend on how long environments take either.
"""

import sys
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal


@dataclass(eq=False, slots=True)
class Place:
    """The clock's record of a lane."""

    number: int
    due: int
    state: Literal["waiting", "idle", "asked", "running", "closed"] = "waiting"
    is_awaited: bool = True
    """False once the engine has given up waiting for its next request."""


class Clock:
    """Admits requests. Not thread-safe; `step` is the number of engine steps done."""

    def __init__(self, lockstep_steps: int, num_seats: int) -> None:
        self._lockstep_steps = lockstep_steps
        self._num_seats = num_seats
        self._num_opened = 0
        self._waiting: deque[Place] = deque()
        self._seated: set[Place] = set()
        """Places that hold a seat; closed ones too, until it is free again."""
        self._idle: set[Place] = set()
        self._asked: list[Place] = []
        self.step = 0

    def open(self, num: int) -> list[Place]:
        """Open places. Those that get a seat are due at once, the others wait for one."""
        places = [Place(self._num_opened + i, self.step) for i in range(num)]
        self._num_opened += num
        self._waiting.extend(places)
        if all(place.state == "closed" for place in self._seated):
            self._seated.clear()  # all seats are free: new places must not depend on when the last one closed
        self._seat(due=self.step)
        return places

    def seat(self) -> None:
        """Give seats that have become free to the places that have waited longest. Their first requests are due a
        lockstep later, as if they were the next requests of the places that left.
        """
        left = [place for place in self._seated if place.state == "closed" and place.due <= self.step]
        self._seated.difference_update(left)
        self._seat(due=self.step + self._lockstep_steps)

    def _seat(self, due: int) -> None:
        while self._waiting and len(self._seated) < self._num_seats:
            place = self._waiting.popleft()
            if place.state == "waiting":
                place.state, place.due = "idle", due
                self._idle.add(place)
                self._seated.add(place)

    def seat_all(self) -> None:
        """Have a seat for each place from now on."""
        self._num_seats = sys.maxsize

    @property
    def is_empty(self) -> bool:
        """Whether no place is open."""
        return not self._waiting and all(place.state == "closed" for place in self._seated)

    def describe(self) -> str:
        """What the open places do, in words."""
        num = Counter(place.state for place in (*self._waiting, *self._seated))
        parts = (
            f"{num['running']} replies are being sampled",
            f"{num['asked']} wait for admission",
            f"{num['idle']} rollouts are in environment code",
            f"{num['waiting']} wait for a seat",
        )
        return ", ".join(part for part in parts if not part.startswith("0 ")) or "no rollout is open"

    def ask(self, place: Place) -> None:
        """Record that the place has a request. Raises `ValueError` if it is closed or already has one."""
        if place.state != "idle":
            raise ValueError(f"lane {place.number} cannot ask: it is {place.state}")
        self._idle.remove(place)
        place.state = "asked"
        self._asked.append(place)

    def admit(self, is_busy: bool) -> list[Place]:
        """Take the places whose requests enter now; none while a place is `overdue`.

        An engine without running requests (`is_busy` False) first jumps to the time at which the next place is due.
        """
        if not self._lockstep_steps:
            self.seat()
            ready = self._asked.copy()
        else:
            if not is_busy:
                leaving = [place for place in self._seated if place.state == "closed"] if self._waiting else []
                waiting = [place.due for place in (*self._awaited(), *self._asked, *leaving)]
                self.step = max(self.step, min(waiting, default=0))
            if self.overdue():
                return []
            self.seat()
            due = (place for place in self._asked if place.due <= self.step)
            ready = sorted(due, key=lambda place: place.number)
        self.take(ready)
        return ready

    def take(self, places: Iterable[Place]) -> None:
        """The requests of these places enter now."""
        for place in places:
            self._asked.remove(place)
            place.state = "running"

    def overdue(self) -> list[Place]:
        """Places without a request that the next step waits for."""
        if not self._lockstep_steps:
            return []
        return [place for place in self._awaited() if place.due <= self.step]

    def give_up(self) -> list[Place]:
        """Stop waiting for the places that are overdue. Their later requests enter immediately."""
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
        """Close the place: it sends no more requests. Idempotent; a request in the engine goes on."""
        if place.state == "asked":
            self._asked.remove(place)
        self._idle.discard(place)
        place.state = "closed"
        if not self._lockstep_steps:
            place.due = self.step

    def _awaited(self) -> list[Place]:
        return [place for place in self._idle if place.is_awaited]
