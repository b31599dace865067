import math
import statistics
from dataclasses import replace
from typing import Any

import pytest

from envs.messages import Message
from envs.scored import scored
from rl.cluster.placement import layout
from rl.data_types import Group, Outcome
from rl.evaluate import print_table, without_curricula, without_learner
from rl.runs.evaluation import bootstrap_interval, clustered_error, evaluation_metrics, pass_at
from rl.tasks.arms import arms_of
from tests.makers import ARITHMETIC, make_config, make_group


def test_rewards_are_averaged_by_environment_and_failures_are_not_zeros() -> None:
    groups = [make_group([1.0, 0.5, None]), make_group([0.0], ordinal=1), make_group([1.0], ordinal=2, env_id="b")]
    metrics = evaluation_metrics(groups)
    assert metrics["reward/math/Arithmetic-v0"] == pytest.approx(0.5)
    assert metrics["accuracy/math/Arithmetic-v0"] == pytest.approx(1 / 3)
    # Residuals 0.5 + 0 and -0.5 of two tasks: sqrt((1/4 + 1/4) * 2 / 1) / 3.
    assert metrics["stderr/math/Arithmetic-v0"] == pytest.approx(1 / 3)
    assert (metrics["num/math/Arithmetic-v0"], metrics["failed/math/Arithmetic-v0"]) == (3, 1)
    assert metrics["reward/b"] == 1.0
    assert metrics["reward/mean"] == pytest.approx(0.75)


@scored(rows=[{"prompt": "?", "split": "train"}], reward_range=(0.0, 10.0))
def up_to_ten(reply, row):
    """Pay up to 10."""
    return 10.0


def test_accuracy_is_the_share_of_rewards_at_the_top_of_the_declared_range() -> None:
    env_id = "tests.test_evaluate:up_to_ten"
    metrics = evaluation_metrics([make_group([3.0, 10.0, 1.0, None], env_id=env_id)])
    assert metrics[f"accuracy/{env_id}"] == pytest.approx(1 / 3)
    assert metrics[f"reward/{env_id}"] == pytest.approx(14 / 3)


def test_an_environment_of_which_nothing_counts_has_no_reward() -> None:
    metrics = evaluation_metrics([make_group([None, None])])
    assert metrics == {"num/math/Arithmetic-v0": 0, "failed/math/Arithmetic-v0": 2}


def test_with_one_rollout_a_task_the_error_is_that_of_the_mean() -> None:
    rewards = [1.0, 0.0, 0.5, 1.0]
    assert clustered_error([[one] for one in rewards]) == pytest.approx(statistics.stdev(rewards) / 2)
    assert clustered_error([[1.0, 0.0]]) == 0.0


def test_rollouts_of_one_task_that_are_alike_count_as_one() -> None:
    assert clustered_error([[1.0] * 8, [0.0] * 8, [1.0] * 8]) == pytest.approx(clustered_error([[1.0], [0.0], [1.0]]))
    low, high = bootstrap_interval([[1.0] * 8, [0.0] * 8] * 20)
    # 40 tasks of mean 1/2: a deviation of sqrt(1/4 / 40) = 0.079, 1.96 of which are 0.155.
    assert (low, high) == (pytest.approx(0.345, abs=0.02), pytest.approx(0.655, abs=0.02))
    assert bootstrap_interval([[0.25, 0.75]]) == (0.5, 0.5)


def test_the_error_of_the_accuracy_is_that_of_tasks_too() -> None:
    groups = [make_group([1.0] * 4), make_group([0.0] * 4, 1), make_group([1.0, 1.0, 0.5, 0.5], 2)]
    metrics = evaluation_metrics(groups)
    assert metrics[f"accuracy/{ARITHMETIC}"] == 0.5
    # Residuals 4/2, -4/2 and 0 of three tasks: sqrt(8 * 3 / 2) / 12. Twelve independent rollouts would have 0.144.
    assert metrics[f"accuracy_stderr/{ARITHMETIC}"] == pytest.approx(12**0.5 / 12)


def test_pass_at_k_is_that_of_all_choices_of_k_rollouts() -> None:
    # One of 4 is correct: half of the 6 pairs have it. Two of 4: all but 1 pair.
    assert pass_at(2, [[True, False, False, False], [True, True, False, False]]) == pytest.approx((0.5 + 5 / 6) / 2)
    assert pass_at(1, [[True, False, False, False]]) == 0.25
    assert pass_at(4, [[True, False, False, False], [False] * 4]) == 0.5


def answered(env_id: str, *replies: tuple[str, float], **changes: Any) -> Group:
    """A group whose members wrote these texts and earned these rewards."""
    group = make_group([reward for _, reward in replies], env_id=env_id)
    rollouts = [
        replace(one, messages=(Message("user", "?"), Message("assistant", text)), **changes)
        for one, (text, _) in zip(group.rollouts, replies, strict=True)
    ]
    return replace(group, rollouts=tuple(rollouts))


def majority(env_id: str, *replies: tuple[str, float], **changes: Any) -> float:
    return evaluation_metrics([answered(env_id, *replies, **changes)])[f"majority/{env_id}"]


def test_several_rollouts_a_task_give_pass_at_k() -> None:
    group = make_group([1.0, 1.0, 0.0, 0.0, 0.0])
    metrics = evaluation_metrics([group])
    assert metrics[f"pass_at_1/{ARITHMETIC}"] == pytest.approx(0.4)
    assert metrics[f"pass_at_4/{ARITHMETIC}"] == 1.0 and f"pass_at_8/{ARITHMETIC}" not in metrics
    one_failed = [replace(group, rollouts=group.rollouts[:4]), make_group([1.0, None, None, None], ordinal=1)]
    assert evaluation_metrics(one_failed)[f"pass_at_4/{ARITHMETIC}"] == 1.0  # of the tasks that have as many
    alone = evaluation_metrics([make_group([1.0])])
    assert not any(name.startswith(("pass_at_", "majority")) for name in alone)
    assert not any(math.isnan(value) for value in alone.values())


def test_the_majority_is_of_the_answers_that_replies_give() -> None:
    seven, eight = ("It is 7", 1.0), ("It is 8", 0.0)
    assert majority(ARITHMETIC, seven, ("**Answer:** 7", 1.0), eight, ("It is 9", 0.0)) == 1.0
    assert majority(ARITHMETIC, seven, eight) == 0.5
    assert majority(ARITHMETIC, seven, eight, ("It is 9", 0.0)) == pytest.approx(1 / 3)
    assert majority(ARITHMETIC, seven, ("1/2", 0.0), ("It is 0.5", 0.0)) == 0.0
    assert majority("math/GradeSchool-v0", ("#### 1/2", 1.0), ("0.5", 1.0), ("3", 0.0), ("#### 3.0", 0.0)) == 0.5
    choice = "math/MultipleChoice-v0"
    said = (("The answer is B.", 0.0), ("I think the answer is B", 0.0), ("It is 100, hence the answer is A", 1.0))
    assert majority(choice, *said) == 0.0
    assert majority(choice, *said, ("100 degrees means the answer is C", 0.0), ("Answer: A", 1.0)) == 0.5
    assert majority("math/RunningTotal-v0", ("Two", 0.0), ("two", 0.0), ("one", 1.0)) == 0.0


def test_replies_without_an_answer_or_cut_off_do_not_vote() -> None:
    assert majority(ARITHMETIC, ("7", 1.0), ("no idea", 0.0), ("no idea", 0.0)) == 1.0
    assert majority(ARITHMETIC, ("no idea", 0.0), ("", 0.0)) == 0.0
    assert majority(ARITHMETIC, ("7+5 is", 0.0), ("7+5", 0.0), outcome=Outcome.TRUNCATED) == 0.0
    cut = answered(ARITHMETIC, ("7+5=12", 0.0), ("7+5=12", 0.0), outcome=Outcome.TRUNCATED).rollouts
    (right,) = answered(ARITHMETIC, ("9", 1.0)).rollouts
    group = replace(make_group([1.0]), rollouts=(right, *cut))
    assert evaluation_metrics([group])[f"majority/{ARITHMETIC}"] == 1.0


def fails(text: str) -> str:
    raise ValueError(text)


@scored(rows=[{"prompt": "?", "split": "train"}], answer_of=fails)
def unreadable(reply, row):
    """Cannot read its answers."""
    return 1.0


def test_environments_that_read_no_answers_have_no_majority() -> None:
    for env_id in ("tools/Store-v0", "math/Countdown-v0", "tests.test_evaluate:up_to_ten", "nobody/HasThis-v0"):
        metrics = evaluation_metrics([answered(env_id, ("1+2", 1.0), ("2+1", 1.0))])
        assert f"pass_at_2/{env_id}" in metrics and f"majority/{env_id}" not in metrics


def test_an_environment_that_fails_to_read_an_answer_is_told(caplog: pytest.LogCaptureFixture) -> None:
    env_id = "tests.test_evaluate:unreadable"
    metrics = evaluation_metrics([answered(env_id, ("a", 1.0), ("b", 0.0))])
    assert f"pass_at_2/{env_id}" in metrics and f"majority/{env_id}" not in metrics
    assert f"{env_id}: answer_of raised ValueError: b" in caplog.text


@pytest.mark.parametrize(("precision", "num_ranks"), [("bf16", 0), ("nvfp4", 1)])
def test_places_for_a_learner_are_reserved_only_if_one_quantises_the_policy(precision: str, num_ranks: int) -> None:
    asked = layout(without_learner(make_config(precision=precision)))
    assert (len(asked.ranks), len(asked.engines)) == (num_ranks, 1)


def test_accuracy_is_also_told_by_what_differs_in_the_options_of_the_tasks() -> None:
    groups = []
    for ordinal, (level, rewards) in enumerate([(1, [1.0, 0.0]), (2, [0.0, 0.0]), (1, [1.0, 1.0]), (3, [None])]):
        group = make_group(rewards, ordinal)
        groups.append(replace(group, task=replace(group.task, options={"size": 5, "level": level})))
    metrics = evaluation_metrics(groups)
    found = {name: value for name, value in metrics.items() if name.startswith(f"accuracy/{ARITHMETIC}/")}
    assert found == {f"accuracy/{ARITHMETIC}/level_1": 0.75, f"accuracy/{ARITHMETIC}/level_2": 0.0}
    assert metrics[f"accuracy/{ARITHMETIC}"] == 0.5
    assert not any("level" in name for name in evaluation_metrics(groups[:1]))


def test_sets_of_options_have_the_names_that_a_curriculum_gives_them() -> None:
    sets = [{"level": 1, "size": 3}, {"level": 1, "size": 3, "hard": True}]
    config = make_config(environments={ARITHMETIC: {"options": {"x": 1}, "curriculum": {"option_sets": sets}}})
    names = [arm.name for arm in arms_of(ARITHMETIC, config.environments[ARITHMETIC])]
    assert names == ["hard_default", "hard_True"]
    groups = [
        replace(group, task=replace(group.task, options=options))
        for options in config.environments[ARITHMETIC].every_options
        for group in [make_group([1.0])]
    ]
    found = [name for name in evaluation_metrics(groups) if name.startswith(f"accuracy/{ARITHMETIC}/")]
    assert found == [f"accuracy/{ARITHMETIC}/{name}" for name in names]


def test_an_evaluation_keeps_sets_of_options_and_drops_other_curricula() -> None:
    sets = {"option_sets": [{"level": 1}, {"level": 2}], "measured": {}}
    environments = {ARITHMETIC: {"curriculum": sets}, "tools/Store-v0": {"curriculum": {"num_tasks": 3}}}
    config = without_curricula(make_config(environments=environments))
    assert config.environments[ARITHMETIC].curriculum is not None
    assert config.environments["tools/Store-v0"].curriculum is None


def test_what_an_environment_does_not_have_is_a_dash_in_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = {"num/a": 4.0, "reward/a": 0.5, "majority/a": 1.0, "num/b": 4.0, "reward/b": 0.25}
    print_table("held-out tasks", metrics)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    (row,) = (line for line in lines if "b" in line)
    assert "0.250" in row and "-" in row and "nan" not in row
