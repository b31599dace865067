import json
import math
from collections import Counter
from pathlib import Path

import pytest

from rl.config.environments import BudgetCurriculumConfig, CurriculumConfig, EnvironmentConfig
from rl.tasks.curriculum import Curriculum, CurriculumError
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


def write_profile(path: Path, rates: list[float], **changes: object) -> CurriculumConfig:
    rows = [
        {"env_id": "a", "seed": n, "split": "train", "options": {"level": n}, "pass_rate": rate, "kind": "useful"}
        for n, rate in enumerate(rates)
    ]
    path.write_text("".join(json.dumps({**row, **changes}) + "\n" for row in rows))
    return CurriculumConfig(profile=path, num_steps=10)


def test_a_curriculum_goes_from_easy_to_hard_and_leaves_out_what_is_always_passed(tmp_path: Path) -> None:
    config = write_profile(tmp_path / "profile.jsonl", [1.0, 0.9, 0.8, 0.5, 0.2, 0.0])
    environments = {"a": EnvironmentConfig(options={"level": 9}, curriculum=config), "b": EnvironmentConfig()}
    stream = TaskStream(environments, 0, 40)
    steps = [[task for n in range(40) if (task := stream.task(40 * step + n)).env_id == "a"] for step in range(20)]
    means = [sum(1 - task.seed / 5 for task in tasks) / len(tasks) for tasks in steps]
    assert {task.seed for task in steps[0]} <= {1, 2, 3} and {task.seed for task in steps[19]} <= {3, 4, 5}
    assert all(task.options == {"level": task.seed} for task in steps[5])
    assert means[0] > means[5] > means[10]
    assert [TaskStream(environments, 0, 40).task(n) for n in (7, 399)] == [stream.task(n) for n in (7, 399)]


def test_the_mean_of_a_curriculum_falls_linearly_and_then_stays(tmp_path: Path) -> None:
    curriculum = Curriculum("a", write_profile(tmp_path / "profile.jsonl", [0.5]))
    assert [round(curriculum.mean_pass_rate(step), 6) for step in (0, 5, 10, 20)] == [0.8, 0.5, 0.2, 0.2]
    assert curriculum.draw(0, 1).seed == 0
    assert str(curriculum) == "1 tasks, passed 50% to 50% of the time, with the profile's options and budgets"


def test_pass_rates_are_drawn_as_the_gaussian_says_however_many_tasks_have_each(tmp_path: Path) -> None:
    curriculum = Curriculum("a", write_profile(tmp_path / "profile.jsonl", [0.0] * 900 + [n / 10 for n in range(10)]))
    rates = [curriculum.draw(10, seed).pass_rate for seed in range(2000)]
    weights = {n / 10: math.exp(-0.5 * ((n / 10 - 0.2) / 0.15) ** 2) for n in range(10)}
    for rate, weight in weights.items():
        assert rates.count(rate) / len(rates) == pytest.approx(weight / sum(weights.values()), abs=0.03)


def test_a_profiled_task_keeps_its_budget(tmp_path: Path) -> None:
    for budget, drawn in ((32, 32), (None, "unlimited")):
        config = write_profile(tmp_path / "profile.jsonl", [0.5], budget=budget)
        stream = TaskStream({"a": EnvironmentConfig(curriculum=config)}, 0, 8)
        assert {stream.task(n).budget for n in range(8)} == {drawn}


@pytest.mark.parametrize(
    "changes", [{"split": "heldout"}, {"env_id": "b"}, {"kind": "too few tries"}, {"pass_rate": 1.0}]
)
def test_a_profile_without_tasks_to_learn_from_is_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    config = write_profile(tmp_path / "profile.jsonl", [0.5, 0.6], **changes)
    with pytest.raises(CurriculumError, match=r"profile.jsonl has . training tasks of a .* none that was not always"):
        Curriculum("a", config)
    with pytest.raises(CurriculumError, match="write one with: python -m envs profile"):
        Curriculum("a", config.model_copy(update={"profile": tmp_path / "missing.jsonl"}))


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
