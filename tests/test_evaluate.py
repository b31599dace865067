import pytest

from envs.scored import scored
from rl.runs.evaluation import evaluation_metrics
from tests.makers import make_group


def test_rewards_are_averaged_by_environment_and_failures_are_not_zeros() -> None:
    groups = [make_group([1.0, 0.5, None]), make_group([0.0], ordinal=1), make_group([1.0], ordinal=2, env_id="b")]
    metrics = evaluation_metrics(groups)
    assert metrics["reward/math/Arithmetic-v0"] == pytest.approx(0.5)
    assert metrics["accuracy/math/Arithmetic-v0"] == pytest.approx(1 / 3)
    assert metrics["stderr/math/Arithmetic-v0"] == pytest.approx(0.5 / 3**0.5)
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
