from collections import Counter
from collections.abc import Sequence

import pytest

from rl.config.environments import BudgetCurriculumConfig, EnvironmentConfig
from rl.tasks.stream import TaskStream, evaluation_tasks

WEIGHTS = {"a": EnvironmentConfig(weight=3), "b": EnvironmentConfig(weight=2), "c": EnvironmentConfig(weight=0.5)}


def test_a_task_depends_on_nothing_but_the_configuration_and_its_ordinal() -> None:
    forwards, backwards = TaskStream(WEIGHTS, 1, 8), TaskStream(WEIGHTS, 1, 8)
    assert [forwards.task(n) for n in range(50)] == [backwards.task(n) for n in reversed(range(50))][::-1]


def test_another_seed_gives_other_tasks_of_the_same_environments() -> None:
    first, second = TaskStream(WEIGHTS, 1, 8), TaskStream(WEIGHTS, 2, 8)
    assert [first.task(n).env_id for n in range(20)] == [second.task(n).env_id for n in range(20)]
    assert not {first.task(n).seed for n in range(20)} & {second.task(n).seed for n in range(20)}


@pytest.mark.parametrize("num_tasks", [1, 7, 64, 550])
def test_the_mixture_is_exact_after_any_number_of_tasks(num_tasks: int) -> None:
    stream = TaskStream(WEIGHTS, 0, 8)
    counts = Counter(stream.task(n).env_id for n in range(num_tasks))
    for env_id, environment in WEIGHTS.items():
        assert abs(counts[env_id] - num_tasks * environment.weight / 5.5) < 1


@pytest.mark.parametrize(
    "weights", [(3, 2, 0.5), (1, 1, 0.016), (0.036, 1, 9, 9), (0.001, 9, 1, 1, 9, 0.235, 0.016, 9, 1), (1,) * 12]
)
def test_no_environment_is_a_task_ahead_of_its_share_or_far_behind_it(weights: Sequence[float]) -> None:
    stream = TaskStream({str(n): EnvironmentConfig(weight=weight) for n, weight in enumerate(weights)}, 0, 8)
    shares, counts = [weight / sum(weights) for weight in weights], [0] * len(weights)
    most_behind = sum(1 / n for n in range(2, len(weights) + 1))
    for num_tasks in range(1, 400):
        counts[int(stream.task(num_tasks - 1).env_id)] += 1
        behind = [num_tasks * share - count for share, count in zip(shares, counts, strict=True)]
        assert min(behind) > -1 and max(behind) < most_behind + 1e-9


def test_every_step_has_the_requested_mix_where_it_can() -> None:
    weights = {"a": 2.0, **dict.fromkeys("bcdefghijklm", 1.0)}
    stream = TaskStream({name: EnvironmentConfig(weight=weight) for name, weight in weights.items()}, 0, 14)
    for step in range(100):
        assert Counter(stream.task(n).env_id for n in range(14 * step, 14 * step + 14)) == weights


@pytest.mark.parametrize("window", [3, 11, 22, 40])
def test_any_window_of_tasks_has_the_mix_to_within_a_task_at_each_end(window: int) -> None:
    stream = TaskStream(WEIGHTS, 0, 8)
    for start in range(200):
        counts = Counter(stream.task(n).env_id for n in range(start, start + window))
        for env_id, environment in WEIGHTS.items():
            assert abs(counts[env_id] - window * environment.weight / 5.5) < (2 if window % 11 else 1e-9)


def test_heldout_tasks_are_of_the_heldout_split_and_numbered() -> None:
    tasks = evaluation_tasks(WEIGHTS, 4)
    assert [task.ordinal for task in tasks] == list(range(12))
    assert {task.split for task in tasks} == {"heldout"}
    assert Counter(task.env_id for task in tasks) == {"a": 4, "b": 4, "c": 4}
    assert len({(task.env_id, task.seed) for task in tasks}) == 12


def test_budgets_that_are_numbers_narrow_over_the_steps_and_those_of_evaluations_do_not() -> None:
    narrowing = BudgetCurriculumConfig(num_steps=4, first_factor=3.0)
    environments = {"a": EnvironmentConfig(budget={40: 1.0}, budget_curriculum=narrowing)}
    stream = TaskStream(environments, 0, 2)
    assert [stream.task(n).budget for n in range(12)] == [120, 120, 100, 100, 80, 80, 60, 60, 40, 40, 40, 40]
    assert {task.budget for task in evaluation_tasks(environments, 5)} == {40}
    others = {"a": EnvironmentConfig(budget={"off": 1.0, "unlimited": 1.0}, budget_curriculum=narrowing)}
    assert {TaskStream(others, 0, 2).task(n).budget for n in range(20)} == {"off", "unlimited"}
