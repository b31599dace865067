"""Actors: however Ray says that one is gone, it is the same to whoever waits; other errors come back as they are."""

import time
from typing import Any

import pytest
import ray
from ray._raylet import PlacementGroupID
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    GetTimeoutError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    OwnerDiedError,
    RayTaskError,
    WorkerCrashedError,
)
from ray.util.placement_group import PlacementGroup

from rl.cluster import actors as actors_module
from rl.cluster.actors import ActorDied, Deadline, DeadlinePassed, Pending, start_actor, wait_together
from rl.cluster.reserve import Place

SOON = Deadline(5.0, "an update", "train.update_timeout_s")


def waiting(monkeypatch: pytest.MonkeyPatch, error: Exception) -> Pending[int]:
    def get(reference: Any, timeout: float) -> int:
        raise error

    monkeypatch.setattr(ray, "get", get)
    return Pending("a reference")


@pytest.mark.parametrize(
    "error",
    [
        ActorDiedError(),
        ActorUnavailableError("it is restarted", None),
        NodeDiedError("its node went"),
        ObjectLostError("00", None, ""),
        OwnerDiedError("00", None, ""),
        OutOfMemoryError("the monitor killed it"),
        WorkerCrashedError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_every_way_of_being_gone_is_the_same(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    with pytest.raises(ActorDied, match=type(error).__name__):
        waiting(monkeypatch, error).wait(SOON)


def test_the_error_of_remote_code_comes_back_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    wrapped = RayTaskError("update", "Traceback ...", KeyError("no such row"))
    with pytest.raises(KeyError):
        waiting(monkeypatch, wrapped).wait(SOON)


@pytest.mark.slow
def test_a_deadline_is_told_with_its_key_and_the_seconds_that_are_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    passed = Deadline(5.0, "an update", "train.update_timeout_s", started=time.monotonic() - 6.0)
    with pytest.raises(DeadlinePassed, match=r"an update took longer than 5 s; train\.update_timeout_s sets"):
        waiting(monkeypatch, GetTimeoutError()).wait(passed)


@pytest.mark.slow
def test_who_has_not_answered_of_calls_that_work_together_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    passed = Deadline(5.0, "an update", "train.update_timeout_s", started=time.monotonic() - 6.0)
    waits = iter([["first"], ["third"], []])
    monkeypatch.setattr(ray, "wait", lambda references, timeout: (next(waits), references))

    def get(reference: str, timeout: float) -> int:
        if reference in ("first", "third"):
            return 0
        raise GetTimeoutError

    monkeypatch.setattr(ray, "get", get)
    calls: list[Pending[int]] = [Pending(reference) for reference in ("first", "second", "third", "fourth")]
    with pytest.raises(DeadlinePassed, match=r"an update \(no answer from 1, 3 of 0 to 3\) took longer than 5 s"):
        wait_together(calls, passed, grace_s=0.0)


def test_several_waits_share_one_deadline() -> None:
    assert Deadline(5.0, "", "", started=time.monotonic() - 3.0).left_s == pytest.approx(2.0, abs=0.1)
    assert Deadline(5.0, "", "", started=time.monotonic() - 6.0).left_s == 0.0


def test_an_actor_is_placed_in_its_bundle_or_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    class Remote:
        __ray_ready__ = property(lambda self: self)

        def options(self, **options: Any) -> "Remote":
            asked.update(options)
            return self

        def remote(self, *args: Any) -> "Remote":
            return self

    monkeypatch.setattr(actors_module.ray, "remote", lambda actor_class: Remote())
    group = PlacementGroup(PlacementGroupID.from_random())
    start_actor(dict, 0.5, 0.0, Place(group, 3))
    strategy = asked["scheduling_strategy"]
    assert (strategy.placement_group, strategy.placement_group_bundle_index) == (group, 3)
    start_actor(dict, 0.5, 0.0, None)
    assert asked["scheduling_strategy"] == "DEFAULT"
    assert asked["num_cpus"] == 0.5
