"""Groups are handed over in start order, none is older than max_staleness, and evaluations are played in rounds."""

import random
import time
from collections.abc import Sequence

import pytest

from rl.cluster.actors import Deadline
from rl.config.experiment import ExperimentConfig
from rl.data_types import Group, Task
from rl.rollouts.collector import Collector
from rl.rollouts.worker import GroupSpec
from rl.tasks.ledger import Ledger
from rl.tasks.stream import TaskStream, evaluation_tasks
from tests.makers import make_config, make_rollout


class FakePool:
    """Plays at once; remembers the version at which each group started."""

    def __init__(self, num_workers: int = 2) -> None:
        self.num_workers = num_workers
        self.version = 0
        self.started_at: dict[int, int] = {}
        self.calls: list[tuple[int, list[int]]] = []

    def play(self, worker: int, specs: Sequence[GroupSpec]) -> "FakePlay":
        self.calls.append((worker, [spec.task.ordinal for spec in specs]))
        for spec in specs:
            self.started_at.setdefault(spec.task.ordinal, self.version)
        return FakePlay(specs)

    def wait_until_loaded(self) -> None:
        """There is nothing to load."""

    def collect(self, play: "FakePlay", deadline: Deadline) -> list[Group]:
        return [self.group(spec) for spec in play.specs]

    def least_busy(self) -> int:
        return len(self.calls) % self.num_workers

    def group(self, spec: GroupSpec) -> Group:
        members = tuple(make_rollout(task=spec.task, member=member) for member in range(spec.group_size))
        return Group(spec.group_id, spec.task, members)


class FakePlay:
    def __init__(self, specs: Sequence[GroupSpec]) -> None:
        self.specs = specs
        self.num_groups = len(specs)


def make_collector(
    pool: FakePool, max_staleness: int = 0, ledger: Ledger | None = None, **train_keys: float
) -> Collector:
    train = {"num_steps": 9, "num_prompts": 4, "group_size": 2, "max_staleness": max_staleness, **train_keys}
    config = make_config(train=train, evaluation={"num_tasks": 3})
    return Collector(config, pool, TaskStream(config.environments, 0, 8), ledger or Ledger())  # pyright: ignore[reportArgumentType]


def ordinals(groups: Sequence[Group]) -> list[int]:
    return [group.task.ordinal for group in groups]


def evaluated(collector: Collector, tasks: Sequence[Task]) -> list[Group]:
    return [group for groups in collector.evaluate(tasks) for group in groups]


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
    Collector(config, pool, stream, Ledger()).collect()  # pyright: ignore[reportArgumentType]
    for _, members in pool.calls:
        assert {stream.task(ordinal).env_id for ordinal in members} == set(config.environments)


def test_an_asynchronous_group_goes_to_the_least_busy_worker() -> None:
    pool = FakePool(num_workers=3)
    make_collector(pool, max_staleness=1).collect()
    assert [worker for worker, _ in pool.calls[:6]] == [0, 1, 2, 0, 1, 2]


def test_evaluation_does_not_touch_the_ledger_and_keeps_the_tasks_order() -> None:
    ledger = Ledger()
    collector = make_collector(FakePool(), ledger=ledger)
    stream = TaskStream(make_config().environments, 0, 8)
    tasks = [stream.task(ordinal) for ordinal in range(5)]
    random.Random(0).shuffle(tasks)
    assert ordinals(evaluated(collector, tasks)) == [0, 1, 2, 3, 4]
    assert ledger.state()["num_started"] == 0


def test_a_held_out_task_is_sampled_with_the_same_seed_in_every_version() -> None:
    """A group's id seeds its replies: another id would move every published evaluation."""
    collector = make_collector(FakePool())
    tasks = evaluation_tasks(make_config().environments, 3)
    assert [group.group_id for group in evaluated(collector, tasks)] == ["heldout-0", "heldout-1", "heldout-2"]


def test_after_a_restart_the_oldest_tasks_in_flight_come_first() -> None:
    ledger = Ledger()
    make_collector(FakePool(), max_staleness=1, ledger=ledger).collect()
    for ordinal in (0, 1, 2, 3):  # `collect` has marked them as played
        ledger.finish(ordinal, masked=False)
    resumed = make_collector(FakePool(), max_staleness=1, ledger=Ledger.from_state(ledger.state()))
    assert ordinals(resumed.collect()) == [4, 5, 6, 7]


def test_an_evaluation_is_played_in_rounds_that_the_engines_can_sample_at_once() -> None:
    config = make_config(evaluation={"num_samples": 2}, rollout={"num_workers": 2, "max_in_flight": 3})
    stream = TaskStream(config.environments, 0, 8)
    tasks = [stream.task(number) for number in range(7)]
    for at_once, num_begun in ((False, 0), (True, 5)):  # calls: a worker has a share of a round
        pool = FakePool()
        collector = Collector(config, pool, stream, Ledger())  # pyright: ignore[reportArgumentType]
        rounds = collector.evaluate(tasks, at_once=at_once)
        assert len(pool.calls) == num_begun
        assert [ordinals(groups) for groups in rounds] == [[0, 1, 2], [3, 4, 5], [6]]
        assert len(pool.calls) == 5


@pytest.mark.parametrize(
    ("given", "temperature"), [({}, 0.7), ({"temperature": None}, 0.7), ({"temperature": 1.0}, 1.0)]
)
def test_evaluations_sample_at_the_temperature_of_training_unless_they_have_their_own(
    given: dict[str, float | None], temperature: float
) -> None:
    config = make_config(rollout={"temperature": 0.7}, evaluation=given)
    assert config.model_dump()["evaluation"]["temperature"] == temperature  # as a run saves it, and resumes
    assert ExperimentConfig.model_validate(config.model_dump()) == config


@pytest.mark.parametrize("is_evaluation", [False, True])
def test_the_next_groups_do_not_inherit_a_deadline_that_has_passed(is_evaluation: bool) -> None:
    """It was renewed inside `collect`, for groups whose worker hung; the others' time is not over by that."""

    class Hanging(FakePool):
        left: list[float] = []

        def collect(self, play: FakePlay, deadline: Deadline) -> list[Group]:
            self.left.append(deadline.left_s)
            time.sleep(deadline.left_s if len(self.left) == 1 else 0)
            return super().collect(play, deadline)

    pool = Hanging()
    collector = make_collector(pool, max_staleness=1, collect_timeout_s=0.2)
    if is_evaluation:
        evaluated(collector, evaluation_tasks(make_config().environments, 4))
    else:
        collector.collect()
    assert len(pool.left) > 1 and min(pool.left[1:]) > 0.05
