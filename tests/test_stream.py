from collections import Counter

import pytest

from rl.config import EnvironmentConfig
from rl.tasks.stream import TaskStream, heldout_tasks

WEIGHTS = {"a": EnvironmentConfig(weight=3), "b": EnvironmentConfig(weight=2), "c": EnvironmentConfig(weight=0.5)}


def test_a_task_depends_on_nothing_but_the_configuration_and_its_ordinal() -> None:
    forwards, backwards = TaskStream(WEIGHTS, 1), TaskStream(WEIGHTS, 1)
    assert [forwards.task(n) for n in range(50)] == [backwards.task(n) for n in reversed(range(50))][::-1]


def test_another_seed_gives_other_tasks_of_the_same_environments() -> None:
    first, second = TaskStream(WEIGHTS, 1), TaskStream(WEIGHTS, 2)
    assert [first.task(n).env_id for n in range(20)] == [second.task(n).env_id for n in range(20)]
    assert not {first.task(n).seed for n in range(20)} & {second.task(n).seed for n in range(20)}


@pytest.mark.parametrize("num_tasks", [1, 7, 64, 550])
def test_the_mixture_is_exact_after_any_number_of_tasks(num_tasks: int) -> None:
    stream = TaskStream(WEIGHTS, 0)
    counts = Counter(stream.task(n).env_id for n in range(num_tasks))
    for env_id, environment in WEIGHTS.items():
        assert abs(counts[env_id] - num_tasks * environment.weight / 5.5) < 1


def test_heldout_tasks_are_of_the_heldout_split_and_numbered() -> None:
    tasks = heldout_tasks(WEIGHTS, 4)
    assert [task.ordinal for task in tasks] == list(range(12))
    assert {task.split for task in tasks} == {"heldout"}
    assert Counter(task.env_id for task in tasks) == {"a": 4, "b": 4, "c": 4}
    assert len({(task.env_id, task.seed) for task in tasks}) == 12
