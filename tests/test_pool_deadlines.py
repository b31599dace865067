"""A deadline that has passed for one worker's groups costs no others theirs."""

import time
from collections.abc import Callable
from typing import Any

from rl.cluster.actors import Deadline, DeadlinePassed
from rl.rollouts.worker import Played, RolloutWorker
from tests.test_pool import FakeWorker, make_pool, masked, ordinals, play, spec

LIMIT_S, PLAYS_S = 0.3, 0.05


class Timed(FakeWorker):
    """Each call to play takes some time, or never ends."""

    def __init__(self, hangs: bool = False) -> None:
        super().__init__()
        self.hangs = hangs

    def call(self, method: Callable[..., Any], *args: Any) -> Any:
        if method is not RolloutWorker.play_groups:
            return super().call(method, *args)
        self.calls.append([one.task.ordinal for one in args[0]])
        return TimedPlay(args[0], time.monotonic() + (1e9 if self.hangs else PLAYS_S))


class TimedPlay:
    def __init__(self, specs: Any, ends: float) -> None:
        self.specs, self.ends = specs, ends

    def is_done(self) -> bool:
        return time.monotonic() >= self.ends

    def wait(self, deadline: Deadline) -> Played:
        time.sleep(min(deadline.left_s, max(0.0, self.ends - time.monotonic())))
        if not self.is_done():
            raise DeadlinePassed(f"{deadline.what} took longer than {deadline.seconds:g} s")
        return Played([play(one) for one in self.specs], ())


def test_groups_that_are_played_again_after_a_hang_have_their_time_again() -> None:
    """All were in flight on the worker that hung; each is played alone on the next one, and none is masked."""
    workers = [Timed(hangs=True), Timed(), Timed()]
    pool = make_pool(*workers)
    plays = [pool.play(0, [spec(ordinal)]) for ordinal in range(6)]
    deadline = Deadline(LIMIT_S, "collecting groups", "train.collect_timeout_s")
    for ordinal, one in enumerate(plays):
        groups = pool.collect(one, deadline)
        assert ordinals(groups) == [ordinal] and masked(groups) == []
    assert [worker.is_stopped for worker in workers] == [True, False, False]
