"""The learning rate: by hand, update by update."""

import pytest

from rl.learner.optimizer import learning_rate
from tests.makers import make_config


def test_the_learning_rate_warms_up_and_follows_its_schedule():
    def rates(schedule):
        config = make_config(
            train={"num_steps": 6}, learner={"warmup_steps": 2, "schedule": schedule, "learning_rate": 1.0}
        )
        return [learning_rate(num_updates, config) for num_updates in range(7)]

    assert rates("constant") == pytest.approx([0.5, 1, 1, 1, 1, 1, 1])
    assert rates("linear") == pytest.approx([0.5, 1, 1, 0.75, 0.5, 0.25, 0])
    assert rates("cosine") == pytest.approx([0.5, 1, 1, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5, 0])
