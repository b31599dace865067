"""Groups are handed over in start order, none is older than max_staleness, and a dead worker costs a retry."""

import random
from collections import deque
from collections.abc import Sequence
from typing import Any

import pytest

import rl.rollouts.collector as collector_module
from rl.cluster.cluster import ActorDied
from rl.data_types import Group, Outcome
from rl.rollouts.collector import Collector
from rl.rollouts.worker import GroupSpec
from rl.tasks.ledger import Ledger
from rl.tasks.stream import TaskStream, evaluation_tasks
from tests.conftest import make_config, make_rollout


class FakePool:
    """Plays at once, or dies as often as `deaths` says; remembers the version at which each group started."""

    def __init__(self, num_workers: int = 2, deaths: int = 0) -> None:
        self.num_workers = num_workers
        self.deaths = deaths
        self.version = 0
        self.started_at: dict[int, int] = {}
        self.calls: list[tuple[int, list[int]]] = []
        self.restarts: list[int] = []

    def play(self, worker: int, specs: Sequence[GroupSpec]) -> Any:
        self.calls.append((worker, [spec.task.ordinal for spec in specs]))
        for spec in specs:
            self.started_at.setdefault(spec.task.ordinal, self.version)
        if self.deaths:
            self.deaths -= 1
            return ActorDied()
        return [self.group(spec) for spec in specs]

    def group(self, spec: GroupSpec) -> Group:
        members = tuple(make_rollout(task=spec.task, member=member) for member in range(spec.group_size))
        return Group(spec.group_id, spec.task, members)

    def restart(self, index: int) -> None:
        self.restarts.append(index)


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def wait_for(reference: Any, timeout_s: float, what: str, key: str) -> Any:
        if isinstance(reference, Exception):
            raise reference
        return reference

    monkeypatch.setattr(collector_module, "wait_for", wait_for)


def make_collector(pool: FakePool, max_staleness: int = 0, ledger: Ledger | None = None) -> Collector:
    train = {"num_steps": 9, "num_prompts": 4, "group_size": 2, "max_staleness": max_staleness}
    config = make_config(train=train, evaluation={"num_tasks": 3})
    return Collector(config, pool, TaskStream(config.environments, 0, 8), ledger or Ledger())  # type: ignore[arg-type]


def ordinals(groups: Sequence[Group]) -> list[int]:
    return [group.task.ordinal for group in groups]


@pytest.mark.parametrize("max_staleness", [0, 1, 3])
def test_no_group_is_older_than_max_staleness_and_the_bound_is_reached(max_staleness: int) -> None:
    pool = FakePool()
    collector = make_collector(pool, max_staleness)
    ages, trained = [], []
    for version in range(20):
        pool.version = version
        groups = collector.collect()
        trained += ordinals(groups)
        ages += [version - pool.started_at[ordinal] for ordinal in ordinals(groups)]
    assert max(ages) == max_staleness
    assert trained == list(range(80))


def test_a_synchronous_step_is_one_call_a_worker() -> None:
    pool = FakePool()
    make_collector(pool).collect()
    assert sorted(pool.calls) == [(0, [0, 2]), (1, [1, 3])]


def test_every_worker_gets_a_share_of_every_environment() -> None:
    """Tasks come round the environments in turn; dealt in that order, slow environments would meet one worker only."""
    pool = FakePool()
    config = make_config(
        environments={"math/Arithmetic-v0": {}, "tools/Store-v0": {}},
        train={"num_steps": 1, "num_prompts": 4, "group_size": 2},
    )
    stream = TaskStream(config.environments, 0, 8)
    Collector(config, pool, stream, Ledger()).collect()  # type: ignore[arg-type]
    for _, members in pool.calls:
        assert {stream.task(ordinal).env_id for ordinal in members} == set(config.environments)


def test_an_asynchronous_group_goes_to_the_least_busy_worker() -> None:
    pool = FakePool(num_workers=3)
    make_collector(pool, max_staleness=1).collect()
    assert [worker for worker, _ in pool.calls[:6]] == [0, 1, 2, 0, 1, 2]


def test_a_dead_worker_is_replaced_and_its_groups_played_again() -> None:
    pool = FakePool(deaths=1)
    groups = make_collector(pool).collect()
    assert sorted(ordinals(groups)) == [0, 1, 2, 3]
    assert all(rollout.outcome is Outcome.OK for group in groups for rollout in group.rollouts)
    assert pool.restarts == [0]


def test_a_worker_that_dies_again_leaves_masked_groups_that_keep_their_ids() -> None:
    pool = FakePool(num_workers=1, deaths=2)
    groups = make_collector(pool).collect()
    assert ordinals(groups) == [0, 1, 2, 3]
    for group in groups:
        assert [rollout.outcome for rollout in group.rollouts] == [Outcome.INFRA_ERROR] * 2
        assert [rollout.reward for rollout in group.rollouts] == [None, None]
        assert "died" in group.rollouts[0].error


def test_evaluation_does_not_touch_the_ledger_and_keeps_the_tasks_order() -> None:
    ledger = Ledger()
    collector = make_collector(FakePool(), ledger=ledger)
    tasks = [collector._stream.task(n) for n in range(5)]
    random.Random(0).shuffle(tasks)
    assert ordinals(collector.evaluate(tasks)) == [0, 1, 2, 3, 4]
    assert ledger.state()["num_started"] == 0


def test_a_held_out_task_is_sampled_with_the_same_seed_in_every_version() -> None:
    """A group's id seeds its replies: another id would move every published evaluation."""
    collector = make_collector(FakePool())
    tasks = evaluation_tasks(make_config().environments, 3)
    assert [group.group_id for group in collector.evaluate(tasks)] == ["heldout-0", "heldout-1", "heldout-2"]


def test_after_a_restart_the_oldest_tasks_in_flight_come_first() -> None:
    ledger = Ledger()
    make_collector(FakePool(), max_staleness=1, ledger=ledger).collect()
    for ordinal in (0, 1, 2, 3):
        ledger.finish(ordinal, masked=False)
    resumed = make_collector(FakePool(), max_staleness=1, ledger=Ledger.from_state(ledger.state()))
    assert ordinals(resumed.collect()) == [4, 5, 6, 7]


def test_the_calls_in_flight_on_a_dead_worker_are_played_again_too() -> None:
    pool = FakePool(num_workers=1, deaths=3)
    collector = make_collector(pool, max_staleness=1)
    assert ordinals(collector.collect()) == [0, 1, 2, 3]
    assert isinstance(collector._calls, deque) and len(collector._calls) == 4
