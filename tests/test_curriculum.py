"""What a curriculum draws from a profile, from a pool of tasks and from sets of options, and what it measures."""

import json
import math
import random
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rl.config.environments import CurriculumConfig, EnvironmentConfig
from rl.config.read import dump_config, load_config
from rl.runs import tracking
from rl.tasks.arms import CurriculumError
from rl.tasks.curriculum import Curriculum
from rl.tasks.stream import TaskStream, evaluation_tasks
from tests.makers import ARITHMETIC, make_config, make_group

LEVELS: list[dict[str, object]] = [{"level": 1}, {"level": 2}, {"level": 3}, {"level": 4}]


def of(config: CurriculumConfig, **environment: Any) -> Curriculum:
    return Curriculum("a", EnvironmentConfig(curriculum=config, **environment))


def measured(source: dict[str, Any], weight: float = 0.5, **keys: Any) -> CurriculumConfig:
    """A curriculum that aims at a pass rate of 0.5 of its own. `keys` of the section `measured`."""
    return CurriculumConfig.model_validate({**source, "measured": {"weight": weight, **keys}, "last_pass_rate": 0.5})


def train(curriculum: Curriculum, step: int, rewards_of: dict[int, Sequence[float | None]], ids: range) -> None:
    """A step that trains groups of these arms, one each, with these rewards; the ordinals are `ids`."""
    groups = []
    for ordinal, (number, rewards) in zip(ids, rewards_of.items(), strict=True):
        curriculum._started[ordinal] = curriculum.arms[number]
        groups.append(make_group(rewards, ordinal, "a"))
    curriculum.finish(step, groups, {group.group_id for group in groups})


def pass_rates(curriculum: Curriculum) -> list[float | None]:
    return [arm.pass_rate for arm in curriculum.arms]


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
    curriculum = of(write_profile(tmp_path / "profile.jsonl", [0.5]))
    assert [round(curriculum.mean_pass_rate(step), 6) for step in (0, 5, 10, 20)] == [0.8, 0.5, 0.2, 0.2]
    assert curriculum.draw(0, 1).seed == 0
    assert str(curriculum) == "1 tasks, passed 50% to 50% of the time, with the profile's options and budgets"


def test_pass_rates_are_drawn_as_the_gaussian_says_however_many_tasks_have_each(tmp_path: Path) -> None:
    curriculum = of(write_profile(tmp_path / "profile.jsonl", [0.0] * 900 + [n / 10 for n in range(10)]))
    rates = [curriculum.draw(10, seed).pass_rate for seed in range(2000)]
    weights = {n / 10: math.exp(-0.5 * ((n / 10 - 0.2) / 0.15) ** 2) for n in range(10)}
    for rate, weight in weights.items():
        assert rates.count(rate) / len(rates) == pytest.approx(weight / sum(weights.values()), abs=0.03)


def test_where_no_pass_rate_is_near_all_tasks_with_the_nearest_are_drawn(tmp_path: Path) -> None:
    profile = write_profile(tmp_path / "profile.jsonl", [0.9, 0.8, 0.8, 0.8, 0.85])
    curriculum = of(profile.model_copy(update={"spread": 0.01, "num_steps": None}))  # around 0.2: exp(-1800) is 0
    drawn = Counter(curriculum.draw(0, seed).number for seed in range(3000))
    assert drawn.keys() == {1, 2, 3} and min(drawn.values()) > 900


def test_draws_do_not_depend_on_the_scale_of_the_weights(tmp_path: Path) -> None:
    rates = [0.0, 0.15, 0.15, 0.3, 0.55, 0.7, 0.95]
    curriculum = of(write_profile(tmp_path / "profile.jsonl", rates).model_copy(update={"num_steps": None}))
    weights = [math.exp(-0.5 * ((rate - 0.2) / 0.15) ** 2) / rates.count(rate) for rate in rates]
    for seed in range(5000):
        (number,) = random.Random(seed).choices(range(len(rates)), weights)
        assert curriculum.draw(0, seed).number == number


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
        of(config)
    with pytest.raises(CurriculumError, match="write one with: python -m envs profile"):
        of(config.model_copy(update={"profile": tmp_path / "missing.jsonl"}))


def test_without_pass_rates_all_sets_of_options_are_drawn_alike_with_new_tasks() -> None:
    config = CurriculumConfig(option_sets=tuple(LEVELS))
    environments = {"a": EnvironmentConfig(options={"size": 3}, curriculum=config)}
    stream = TaskStream(environments, 0, 8)
    tasks = [stream.start(ordinal) for ordinal in range(2000)]
    counts = Counter(task.options["level"] for task in tasks)
    assert all(abs(count / 2000 - 0.25) < 0.04 for count in counts.values()) and len(counts) == 4
    assert all(task.options["size"] == 3 for task in tasks) and len({task.seed for task in tasks}) == 2000
    assert stream.described() == [
        "curriculum of a: 4 sets of options (level_1, level_2, level_3, level_4), drawn alike"
    ]
    assert stream.state() == {}


def test_evaluations_take_the_sets_of_options_in_turn_whatever_is_measured() -> None:
    asked = [
        evaluation_tasks({"a": EnvironmentConfig(options={"size": 3}, curriculum=config)}, 6)
        for config in (CurriculumConfig(option_sets=tuple(LEVELS)), measured({"option_sets": LEVELS}))
    ]
    assert asked[0] == asked[1]
    assert [task.options for task in asked[0]] == [{"size": 3, "level": level} for level in (1, 2, 3, 4, 1, 2)]


def test_a_pool_has_the_same_tasks_for_every_seed_of_a_run() -> None:
    environments = {"a": EnvironmentConfig(curriculum=CurriculumConfig(num_tasks=5))}
    drawn = [{TaskStream(environments, seed, 8).task(n).seed for n in range(100)} for seed in (0, 1)]
    assert drawn[0] == drawn[1] and len(drawn[0]) == 5


def test_a_pass_rate_is_the_moving_mean_over_the_steps_that_measure_it() -> None:
    curriculum = of(measured({"num_tasks": 3}, weight=0.25))
    train(curriculum, 1, {0: (1.0, 1.0, 0.0, 0.0), 1: (0.9, 0.0, None, None)}, range(2))
    assert pass_rates(curriculum) == [0.5, 0.0, None]  # 0.9 is not the full reward
    train(curriculum, 2, {0: (1.0, 1.0, 1.0, 1.0), 2: (None, None)}, range(2, 4))
    assert pass_rates(curriculum) == [0.75 * 0.5 + 0.25 * 1.0, 0.0, None]
    assert [(arm.num_tries, arm.measured_at) for arm in curriculum.arms] == [(8, 2), (2, 1), (0, 0)]
    assert curriculum.metrics() == {
        "curriculum/a/pass_rate": 0.5,
        "curriculum/a/unknown": 0.5,
        "curriculum/a/solved": 0,
    }


def test_groups_of_one_step_count_together_and_masked_ones_do_not() -> None:
    curriculum = of(measured({"option_sets": LEVELS}))
    groups = [make_group(rewards, n, "a") for n, rewards in enumerate([(1.0, 1.0), (1.0, 0.0), (0.0, 0.0)])]
    for ordinal, number in enumerate((1, 1, 2)):
        curriculum._started[ordinal] = curriculum.arms[number]
    curriculum.finish(1, groups, {groups[0].group_id, groups[1].group_id})
    assert pass_rates(curriculum) == [None, 0.75, None, None]
    assert curriculum.state() is not None and curriculum.state()["started"] == {}  # pyright: ignore[reportOptionalSubscript]
    shares = {name: value for name, value in curriculum.metrics().items() if "level" in name}
    assert shares == {
        "curriculum/a/share/level_1": 0.0,
        "curriculum/a/share/level_2": 2 / 3,
        "curriculum/a/share/level_3": 1 / 3,
        "curriculum/a/share/level_4": 0.0,
        "curriculum/a/pass_rate/level_2": 0.75,
    }


def test_what_has_no_pass_rate_is_drawn_as_often_as_its_share() -> None:
    curriculum = of(measured({"option_sets": LEVELS}))
    assert {curriculum.draw(0, seed).number for seed in range(50)} == {0, 1, 2, 3}
    train(curriculum, 1, {0: (1.0, 0.0), 1: (0.0, 0.0), 2: (1.0, 1.0)}, range(3))
    counts = Counter(curriculum.draw(1, seed).number for seed in range(4000))
    far = math.exp(-0.5 * (0.5 / 0.15) ** 2)  # of the rates 0 and 1, which are as far from 0.5
    assert counts[3] / 4000 == pytest.approx(0.25, abs=0.03)
    assert counts[0] / 4000 == pytest.approx(0.75 / (1 + 2 * far), abs=0.03)


def test_a_draw_is_the_one_that_its_random_numbers_say() -> None:
    curriculum = of(measured({"option_sets": LEVELS}))
    train(curriculum, 1, {0: (1.0, 0.0), 1: (1.0, 1.0, 0.0), 2: (1.0, 1.0, 1.0, 0.0)}, range(3))
    weights = [1.0, math.exp(-0.5 * ((2 / 3 - 0.5) / 0.15) ** 2), math.exp(-0.5 * (0.25 / 0.15) ** 2)]
    for seed in range(200):
        rng = random.Random(seed)
        first = rng.random()
        expected = 3 if first < 0.25 else rng.choices([0, 1, 2], weights)[0]
        assert curriculum.draw(1, seed).number == expected


def test_what_is_solved_drops_out_but_for_a_share_and_comes_back_when_it_is_failed() -> None:
    curriculum = of(measured({"num_tasks": 3}, solved_pass_rate=0.9, solved_tries=4, solved_share=0.2))
    train(curriculum, 1, {0: (1.0, 1.0), 1: (1.0, 0.0), 2: (1.0, 0.0)}, range(3))
    assert not any(map(curriculum.is_solved, curriculum.arms))  # two tries are too few
    train(curriculum, 2, {0: (1.0, 1.0)}, range(3, 4))
    assert [curriculum.is_solved(arm) for arm in curriculum.arms] == [True, False, False]
    counts = Counter(curriculum.draw(2, seed).number for seed in range(2000))
    assert counts[0] / 2000 == pytest.approx(0.2, abs=0.03)
    train(curriculum, 3, {0: (1.0, 0.0)}, range(4, 5))
    assert curriculum.arms[0].pass_rate == 0.75 and not curriculum.is_solved(curriculum.arms[0])


def test_when_all_is_solved_all_is_drawn_and_a_note_says_so_once() -> None:
    curriculum = of(measured({"num_tasks": 2}, solved_tries=2, solved_share=0.0))
    train(curriculum, 1, {0: (1.0, 1.0), 1: (1.0, 1.0)}, range(2))
    told = "curriculum of a: all of it is solved, so all of it is drawn from; take harder tasks, or end the run"
    assert curriculum.notes() == [told] and curriculum.notes() == []
    assert {curriculum.draw(1, seed).number for seed in range(50)} == {0, 1}
    train(curriculum, 2, {0: (1.0, 1.0)}, range(2, 3))
    assert curriculum.notes() == [] and curriculum.metrics()["curriculum/a/solved"] == 2


def test_without_progress_older_pass_rates_are_forgotten_solved_ones_too() -> None:
    curriculum = of(measured({"num_tasks": 3}, solved_tries=2, plateau_steps=2))
    train(curriculum, 1, {0: (1.0, 1.0), 1: (0.0, 0.0), 2: (1.0, 0.0)}, range(3))
    train(curriculum, 2, {2: (1.0, 1.0)}, range(3, 4))  # 0.5 more than before: 0.75 now
    train(curriculum, 3, {2: (1.0, 0.0)}, range(4, 5))  # 0.25 less: 0.25 / 2 more over both steps
    assert pass_rates(curriculum) == [1.0, 0.0, 0.625] and curriculum.notes() == []
    train(curriculum, 4, {2: (1.0, 0.0)}, range(5, 6))  # 0.125 less again, and 0.375 / 2 less over both
    assert pass_rates(curriculum) == [None, None, 0.5625]
    told = "curriculum of a: no progress over 2 steps, so the pass rates that are older are measured anew: 2 of 3"
    assert curriculum.notes() == [told]
    assert curriculum.arms[0].num_tries == 0 and not curriculum.is_solved(curriculum.arms[0])
    train(curriculum, 5, {2: (0.0, 0.0)}, range(6, 7))
    assert curriculum.notes() == []  # a new window has begun


def test_a_window_of_steps_that_lie_apart_forgets_nothing_that_it_measured() -> None:
    curriculum = of(measured({"num_tasks": 4}, solved_tries=2, plateau_steps=2))
    train(curriculum, 1, {0: (1.0, 0.0), 3: (1.0, 0.0)}, range(2))
    train(curriculum, 2, {1: (1.0, 0.0)}, range(2, 3))  # no gain yet: none had a pass rate
    train(curriculum, 5, {0: (1.0, 0.0)}, range(3, 4))  # the window begins
    train(curriculum, 6, {2: (1.0, 1.0)}, range(4, 5))
    train(curriculum, 20, {1: (1.0, 0.0)}, range(5, 6))
    assert pass_rates(curriculum) == [0.5, 0.5, 1.0, None]
    assert [note.rpartition(": ")[2] for note in curriculum.notes()] == ["1 of 4"]


def test_a_window_goes_on_from_a_checkpoint_and_begins_anew_from_one_without_its_steps() -> None:
    curriculum = of(measured({"num_tasks": 2}, solved_tries=2, plateau_steps=2))
    train(curriculum, 1, {0: (1.0, 0.0), 1: (1.0, 0.0)}, range(2))
    train(curriculum, 5, {0: (1.0, 0.0)}, range(2, 3))
    state = json.loads(json.dumps(curriculum.state()))
    assert state["gains"] == [[5, 0.0]]
    for gains, left in (([[5, 0.0]], [0.5, None]), ([0.0], [0.5, 0.5])):
        resumed = Curriculum(
            "a",
            EnvironmentConfig(curriculum=measured({"num_tasks": 2}, solved_tries=2, plateau_steps=2)),
            {**state, "gains": gains},
        )
        train(resumed, 9, {0: (1.0, 0.0)}, range(3, 4))
        assert pass_rates(resumed) == left


def test_pass_rates_of_a_profile_are_followed_if_asked(tmp_path: Path) -> None:
    path = tmp_path / "profile.jsonl"
    write_profile(path, [1.0, 0.8, 0.2])
    curriculum = of(measured({"profile": path, "num_steps": 10}, weight=0.5))
    train(curriculum, 1, {0: (0.0, 0.0)}, range(1))
    assert pass_rates(curriculum) == [0.4, 0.2]
    assert str(curriculum) == (
        "2 tasks, passed 20% to 40% of the time, with the profile's options and budgets, 0 solved; pass rates are"
        " measured by the run"
    )


def test_a_look_at_a_task_starts_nothing_and_a_started_one_stays_as_it_is() -> None:
    curriculum = of(measured({"option_sets": LEVELS}))
    seed = next(seed for seed in range(100) if curriculum.draw(0, seed).number == 3)
    assert curriculum.arm_of(9, 0, seed).number == 3
    train(curriculum, 1, {0: (1.0, 0.0), 1: (0.0, 0.0), 2: (0.0, 0.0), 3: (0.0, 0.0)}, range(4))
    curriculum.start(9, 1, seed)
    assert curriculum.arm_of(9, 1, seed).number == 0
    train(curriculum, 2, {0: (1.0, 1.0), 3: (1.0, 0.0)}, range(4, 6))
    assert curriculum.arm_of(9, 2, seed).number == 0


def test_groups_that_another_run_played_are_not_measured() -> None:
    curriculum = of(measured({"option_sets": LEVELS}))
    curriculum.finish(1, [make_group((1.0, 0.0), 3, "a")], {"0-3"})
    assert pass_rates(curriculum) == [None] * 4 and curriculum.metrics() == {}


def test_pass_rates_of_other_tasks_are_not_taken_from_a_checkpoint() -> None:
    before = of(measured({"num_tasks": 3}))
    train(before, 1, {0: (1.0, 0.0)}, range(1))
    environment = EnvironmentConfig(options={"level": 2}, curriculum=measured({"num_tasks": 3}))
    again = Curriculum("a", environment, before.state())
    assert pass_rates(again) == [None] * 3
    assert again.notes() == ["curriculum of a: its tasks are others than the checkpoint's, so pass rates begin anew"]


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({}, "draws from one of profile, num_tasks and option_sets, and none is given"),
        ({"num_tasks": 4, "profile": "x"}, "and profile and num_tasks is given"),
        (
            {"num_tasks": 4, "spread": 0.1},
            "spread says which pass rates are drawn, but nothing gives any: add `measured",
        ),
        ({"num_tasks": 4, "measured": {}, "first_pass_rate": 0.9}, "first_pass_rate needs num_steps"),
        (
            {"option_sets": [{"level": 1}, {"level": 1}]},
            "must differ and not be empty, but they are: {'level': 1}, {'level': 1}",
        ),
        ({"option_sets": [{"level": 1}, {}]}, "must differ and not be empty"),
        ({"option_sets": [{"level": 1}]}, "at least 2 items"),
        ({"num_tasks": 4, "measured": {"weight": 0}}, "greater than 0"),
    ],
)
def test_keys_that_say_nothing_or_two_things_are_refused(keys: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        CurriculumConfig.model_validate(keys)


def test_the_documents_name_each_metric_of_a_curriculum() -> None:
    curriculum = of(measured({"option_sets": LEVELS}))
    train(curriculum, 1, {0: (1.0, 0.0)}, range(1))
    train(curriculum, 2, {0: (1.0, 0.0)}, range(1, 2))
    page = (Path(__file__).parent.parent / "docs" / "metrics.md").read_text()
    for name in curriculum.metrics():
        documented = re.sub("level_.", "OPTIONS", name.replace("/a/", "/ENV/"))
        assert f"`{documented}`" in page and documented in str(tracking.__doc__), documented


@pytest.mark.parametrize("keys", [{"num_tasks": 4}, {"option_sets": LEVELS, "measured": {}, "last_pass_rate": 0.5}])
def test_the_configuration_that_a_run_writes_can_be_read_again(keys: dict[str, Any], tmp_path: Path) -> None:
    config = make_config(environments={ARITHMETIC: {"curriculum": keys}})
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "config.yaml") == config
