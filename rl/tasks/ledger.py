"""What is the state of each task in the ledger? Every ordinal is trained once or masked once, whatever is killed.

An ordinal is started (handed out), then played (its group has ended), then trained or masked; until then it is in
flight. A checkpoint stores the ledger together with the weights of the same step, so that after a crash exactly the
ordinals that those weights have not seen are started again, oldest first. Which of their groups need not be played
again is decided in `rl.runs.spool`.
"""

from collections import deque
from collections.abc import Iterable
from typing import TypedDict


class State(TypedDict):
    """The ledger as a checkpoint holds it. Everything below `num_started` that is in neither list was trained."""

    num_started: int
    in_flight: list[int]
    played: list[int]
    """Those in flight whose groups had ended. For people: what is left of the groups is in the spool."""
    masked: list[int]
    """For people who look for what was never trained."""


class Ledger:
    def __init__(self) -> None:
        self._num_started = 0
        self._in_flight: set[int] = set()
        self._played: set[int] = set()
        self._again: deque[int] = deque()
        self._masked: list[int] = []

    def start(self) -> int:
        """The next ordinal to play: one that a restart put back, else a new one."""
        if self._again:
            ordinal = self._again.popleft()
        else:
            ordinal = self._num_started
            self._num_started += 1
        self._in_flight.add(ordinal)
        return ordinal

    def play(self, ordinals: Iterable[int]) -> None:
        """The groups of these ordinals have ended. Raises `LedgerError` when one is not in flight."""
        for ordinal in ordinals:
            self._check(ordinal)
            self._played.add(ordinal)

    def finish(self, ordinal: int, *, masked: bool) -> None:
        """The ordinal's group was trained, or masked because too few of its rollouts count.

        Raises `LedgerError` when it is not in flight: it would be accounted for twice; or when it was not played.
        """
        self._check(ordinal)
        if ordinal not in self._played:
            raise LedgerError(f"task {ordinal} was finished without being played")
        self._in_flight.remove(ordinal)
        self._played.remove(ordinal)
        if masked:
            self._masked.append(ordinal)

    def is_open(self, ordinal: int) -> bool:
        """Whether it is still to be trained or masked: not started yet, to be started again, or in flight."""
        return ordinal >= self._num_started or ordinal in self._in_flight or ordinal in self._again

    @property
    def first_open(self) -> int:
        """The smallest ordinal that is still to be trained or masked."""
        return min((*self._in_flight, *self._again), default=self._num_started)

    def _check(self, ordinal: int) -> None:
        if ordinal not in self._in_flight:
            raise LedgerError(f"task {ordinal} is not in flight; it was finished before or never started")

    def state(self) -> State:
        """For the checkpoint; everything below `num_started` that is neither in flight nor masked was trained."""
        return {
            "num_started": self._num_started,
            "in_flight": sorted(self._in_flight | set(self._again)),
            "played": sorted(self._played),
            "masked": list(self._masked),
        }

    @classmethod
    def from_state(cls, state: State) -> "Ledger":
        ledger = cls()
        ledger._num_started = state["num_started"]
        ledger._again = deque(state["in_flight"])
        ledger._masked = list(state["masked"])
        return ledger


class LedgerError(RuntimeError):
    """A task would be accounted for twice."""
