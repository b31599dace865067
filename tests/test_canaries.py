import math
from dataclasses import replace

import pytest

from rl.config.experiment import CanaryConfig
from rl.data_types import Outcome
from rl.runs.canaries import CanaryStop, check_groups, check_update
from tests.makers import make_group, make_update

CONFIG = CanaryConfig(mismatch_warn=1.05, mismatch_stop=2.0, masked_rows_stop=0.5)


def test_a_step_within_all_thresholds_is_silent() -> None:
    assert check_update(CONFIG, replace(make_update(), mismatch=1.01)) == []


def test_a_step_without_fresh_tokens_has_no_mismatch_to_judge() -> None:
    assert check_update(CONFIG, replace(make_update(), mismatch=None, mismatch_stale=9.0)) == []


def test_a_mismatch_above_the_first_threshold_warns_and_names_its_key() -> None:
    (warning,) = check_update(CONFIG, replace(make_update(), mismatch=1.2))
    assert "canaries.mismatch_warn" in warning


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("mismatch", 2.5, "canaries.mismatch_stop"),
        ("loss", math.nan, "loss is nan"),
        ("grad_norm", math.inf, "grad_norm"),
    ],
)
def test_what_would_train_the_wrong_thing_stops_with_the_reason(field: str, value: float, said: str) -> None:
    with pytest.raises(CanaryStop, match=said):
        check_update(CONFIG, replace(make_update(), **{field: value}))


def test_too_many_rollouts_that_do_not_count_stop_with_the_first_error() -> None:
    with pytest.raises(CanaryStop, match=r"67% .*canaries.masked_rows_stop.*env_error: TimeoutError: reset"):
        check_groups(CONFIG, [make_group([1.0, None, None])])
    assert check_groups(CONFIG, [make_group([1.0, None])]) == []


def test_a_step_whose_rollouts_are_mostly_cut_off_is_warned_of() -> None:
    group = make_group([1.0, 0.0, 0.0, 0.0])
    cut = [replace(rollout, outcome=Outcome.TRUNCATED) for rollout in group.rollouts]
    half = replace(group, rollouts=(*cut[:2], *group.rollouts[2:]))
    assert check_groups(CONFIG, [half]) == []
    (warning,) = check_groups(CONFIG, [replace(group, rollouts=(*cut[:3], group.rollouts[3]))])
    assert "75% of the step's rollouts were cut off (canaries.truncated_warn is 50%)" in warning


def test_an_engine_that_does_not_keep_budgets_is_reported() -> None:
    group = make_group([1.0, 0.0])
    broken = replace(group.rollouts[0], budget_violation="reasoning went on after 7 tokens, budget and grace together")
    (warning,) = check_groups(CONFIG, [replace(group, rollouts=(broken, group.rollouts[1]))])
    assert (
        "thinking budget of 1 rollouts" in warning and "math/Arithmetic-v0" in warning and "after 7 tokens" in warning
    )
