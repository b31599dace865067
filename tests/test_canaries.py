"""Canaries: windows computed by hand, what each action does, and what the configuration refuses."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rl.algorithms.corrections import NonFiniteError
from rl.config.canaries import CanaryConfig
from rl.config.errors import ConfigError
from rl.config.read import load_config
from rl.data_types import Group, Outcome
from rl.runs.canaries import Canaries, CanaryStop
from tests.makers import make_group, make_update


def make(**sections: Any) -> Canaries:
    return Canaries(CanaryConfig.model_validate(sections), {})


def said_of(canaries: Canaries, *groups: Group, mismatch: float | None = 1.0) -> list[str]:
    """What is said of a step, which then counts."""
    canaries.check_groups(groups)
    canaries.check_update(make_update(mismatch=mismatch))
    canaries.count_step()
    return canaries.notes()


def cut_off(num: int, of: int, ordinal: int = 0) -> Group:
    """A group of which some rollouts were cut off."""
    group = make_group([1.0] + [0.0] * (of - 1), ordinal)
    rollouts = [
        replace(one, outcome=Outcome.TRUNCATED if member < num else Outcome.OK)
        for member, one in enumerate(group.rollouts)
    ]
    return replace(group, rollouts=tuple(rollouts))


LOST, WELL = make_group([None, None]), make_group([1.0, 0.0])


def test_a_step_within_all_thresholds_is_silent() -> None:
    assert said_of(make(), WELL, mismatch=1.01) == []


def test_one_bad_step_does_not_stop_a_run_and_a_window_of_them_does() -> None:
    canaries = make(masked_rows={"window": 3, "stop": 0.5})
    for group in (LOST, WELL, WELL, LOST):  # 2 of 2 rollouts, then at most 2 of 6 and 2 of 6
        said_of(canaries, group)
    with pytest.raises(CanaryStop, match=r"66\.7% of the rollouts did not count") as stop:  # 4 of 6
        canaries.check_groups([LOST])
    assert "(canaries.masked_rows.stop is 50% over 3 steps); the first: env_error: TimeoutError: reset" in str(
        stop.value
    )
    assert canaries.notes() == [f"canary stops the run: {stop.value}"]


def test_a_canary_is_silent_until_its_window_is_full() -> None:
    canaries = make(masked_rows={"window": 2, "stop": 0.0})
    assert said_of(canaries, LOST) == []
    assert "canary/masked_rows" not in canaries.metrics()
    with pytest.raises(CanaryStop, match=r"^100% of the rollouts"):
        canaries.check_groups([LOST])


def test_a_share_is_of_all_rollouts_of_the_window_and_a_mean_is_of_steps() -> None:
    canaries = make(truncated_rows={"window": 2}, mismatch={"window": 2, "warn": None})
    said_of(canaries, cut_off(1, of=2), mismatch=1.0)
    said_of(canaries, cut_off(0, of=6), mismatch=1.5)
    metrics = canaries.metrics()
    assert (metrics["canary/truncated_rows"], metrics["canary/mismatch"]) == (0.125, 1.25)


def test_a_step_without_fresh_tokens_has_no_mismatch_to_judge() -> None:
    canaries = make(mismatch={"window": 2})
    for mismatch in (1.0, None, 1.02):
        assert said_of(canaries, WELL, mismatch=mismatch) == []
    assert canaries.metrics()["canary/mismatch"] == pytest.approx(1.01)


def test_a_warning_comes_when_a_value_rises_and_again_after_it_fell() -> None:
    canaries = make(truncated_rows={"window": 1, "warn": 0.5})
    counts = [len(said_of(canaries, cut_off(num, of=4))) for num in (2, 3, 4, 2, 3)]
    assert counts == [0, 1, 0, 0, 1]
    (warning,) = said_of(make(truncated_rows={"window": 1}), cut_off(3, of=4))
    assert warning.startswith(
        "canary truncated_rows: 75% of the rollouts were cut off (canaries.truncated_rows.warn is 50%);"
    )


def test_a_step_that_did_not_count_is_measured_again() -> None:
    canaries = make(masked_rows={"window": 2, "stop": 0.6})
    said_of(canaries, WELL)
    for _ in range(3):  # 2 of 4 each time, because the window holds the well step and this one
        canaries.check_groups([LOST])
    assert canaries.state()["masked_rows"] == {"steps": [[0.0, 2]]}


def test_windows_go_on_from_a_checkpoint_as_if_nothing_had_happened() -> None:
    sections = {"reward_fall": {"window": 2}, "masked_rows": {"window": 3, "stop": None}}
    steps = [make_group(rewards) for rewards in ([1.0, 1.0], [1.0, 0.5], [None, 0.25], [0.25, 0.0], [0.5, None])]
    whole, first = make(**sections), make(**sections)
    for group in steps:
        said_of(whole, group)
    for group in steps[:3]:
        said_of(first, group)
    second = Canaries(CanaryConfig.model_validate(sections), json.loads(json.dumps(first.state())))
    for group in steps[3:]:
        said_of(second, group)
    assert second.metrics() == whole.metrics() and second.state() == whole.state()


def test_a_window_that_was_shortened_keeps_its_newest_steps() -> None:
    canaries = make(masked_rows={"window": 3, "stop": None})
    for group in (LOST, WELL, WELL):
        said_of(canaries, group)
    shorter = CanaryConfig.model_validate({"masked_rows": {"window": 2}})
    assert Canaries(shorter, canaries.state()).metrics()["canary/masked_rows"] == 0.0


def test_a_reward_that_falls_is_measured_from_the_best_window_to_the_lowest_reward() -> None:
    canaries = make(reward_fall={"window": 2, "warn": 0.5, "pause": 0.8})
    falls, said = list[float | None](), list[str]()
    for rewards in ([1.0, 1.0], [1.0, 0.6], [0.4, 0.0], [0.0, 0.0], [0.0, 0.0], [1.0, 1.0]):
        said += said_of(canaries, make_group(rewards))
        falls.append(canaries.metrics().get("canary/reward_fall"))
    # Windows of two steps have the means 0.9, 0.5, 0.1, 0.0 and 0.5; the lowest reward is 0.6, then 0.
    assert falls == [None, 0.0, *(pytest.approx(fall / 0.9) for fall in (0.4, 0.8, 0.9, 0.4))]
    (pause,) = said
    assert (
        "fell by 88.9% of the way from its best to the lowest reward (canaries.reward_fall.pause is 80% over 2" in pause
    )


def test_rewards_that_never_differ_have_not_fallen() -> None:
    canaries = make(reward_fall={"window": 1})
    said_of(canaries, make_group([0.0, 0.0]))
    said_of(canaries, LOST)  # no rollout counts, so that there is no reward to judge
    assert canaries.metrics()["canary/reward_fall"] == 0.0


@pytest.mark.parametrize(("canary", "first"), [("truncated_rows", 3), ("masked_rows", 4)])
def test_a_masked_group_is_left_out_and_the_others_are_trained(canary: str, first: int) -> None:
    canaries = make(**{canary: {"window": 1, "warn": None, "mask": 0.5, "stop": None}})
    groups = [cut_off(2, of=4, ordinal=2), cut_off(3, of=4, ordinal=3), make_group([1.0, 0.0, None, None, None], 4)]
    assert [group.task.ordinal for group in canaries.check_groups(groups)] == [n for n in (2, 3, 4) if n != first]
    canaries.count_step()
    assert canaries.metrics()[f"canary/{canary}/masked_groups"] == 1
    (note,) = canaries.notes()
    assert note.startswith(f"canary {canary} masked the groups of tasks {first}: more than 50% of their rollouts")


def test_a_pause_is_asked_for_once_its_step_counts_and_only_when_the_value_rises() -> None:
    canaries = make(mismatch={"warn": 1.05, "pause": 1.2, "stop": 2.0})

    def pauses(mismatch: float) -> list[str]:
        canaries.check_groups([WELL])
        canaries.check_update(make_update(mismatch=mismatch))
        return canaries.count_step()

    (reason,) = pauses(1.3)
    assert reason.startswith("mismatch between learner and engine is 1.300 (canaries.mismatch.pause is 1.2);")
    assert [len(pauses(mismatch)) for mismatch in (1.4, 1.1, 1.3)] == [0, 0, 1]
    assert canaries.metrics()["canary/mismatch/level"] == 2


def test_a_stop_does_not_wait_for_the_value_to_rise() -> None:
    canaries = make(mismatch={"stop": 2.0})
    for _ in range(2):
        with pytest.raises(CanaryStop, match=r"is 2\.500 \(canaries.mismatch.stop is 2\)"):
            canaries.check_update(make_update(mismatch=2.5))
        canaries.count_step()


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("loss", math.nan, ""),
        ("grad_norm", math.inf, r"\(canaries\.grad_norm judges finite values only\); lower learner\.learning_rate"),
        ("mismatch", math.inf, r"\(canaries\.mismatch judges finite values only\); they do not compute the same"),
    ],
)
def test_an_update_with_a_number_that_is_not_finite_stops_the_run(field: str, value: float, told: str) -> None:
    off = {"warn": None, "pause": None, "stop": None}
    for canaries in (make(), make(mismatch=off)):
        with pytest.raises(CanaryStop, match=f"{field} is {value} after update [0-9]+ ?{told}"):
            canaries.check_update(replace(make_update(), **{field: value}))


def test_a_gradient_above_its_threshold_warns() -> None:
    canaries = make(grad_norm={"warn": 10.0})
    canaries.check_update(make_update(grad_norm=12.0))
    (warning,) = canaries.notes()
    assert "the gradient's norm is 12.000 (canaries.grad_norm.warn is 10)" in warning


def test_refused_updates_are_masked_up_to_a_number_in_a_row() -> None:
    canaries, error = make(not_finite={"mask": 2}), NonFiniteError("the norm is nan. Lower the rate")
    canaries.mask_update([WELL], error)
    canaries.mask_update([WELL], error)
    assert canaries.notes() == ["canary not_finite masked the groups of tasks 0: the norm is nan"] * 2
    again = Canaries(CanaryConfig.model_validate({"not_finite": {"mask": 2}}), canaries.state())
    with pytest.raises(CanaryStop, match="Lower the rate"):
        again.mask_update([WELL], error)
    canaries.count_step()  # a good update: the count begins anew
    assert canaries.metrics()["canary/not_finite"] == 2
    canaries.mask_update([WELL], error)


def test_an_engine_that_does_not_keep_budgets_is_reported() -> None:
    group = make_group([1.0, 0.0])
    broken = replace(group.rollouts[0], budget_violation="reasoning went on after 7 tokens, budget and grace together")
    (warning,) = said_of(make(), replace(group, rollouts=(broken, group.rollouts[1])))
    assert "50% of the rollouts violated the thinking budget (canaries.budget_violations.warn is 0%)" in warning
    assert "math/Arithmetic-v0" in warning and "after 7 tokens" in warning


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("mismatch.mask=1.5", ["canaries.mismatch: this canary cannot mask", "loss.sequence_mismatch_max"]),
        ("grad_norm.mask=9", ["canaries.grad_norm: this canary cannot mask", "learner.max_grad_norm"]),
        ("reward_fall.mask=0.5", ["canaries.reward_fall: this canary cannot mask", "not the fault of single groups"]),
        ("masked_rows.stop=1.5", ["canaries.masked_rows.stop: 1.5 is not valid", "at most 1"]),
        ("mismatch.pause=1.0", ["canaries.mismatch.pause: 1.0 is not valid", "more than 1"]),
        ("mismatch_warn=1.1", ["there is no such key", "did you mean canaries.mismatch.warn?"]),
        ("masked_rows_stop=1.0", ["there is no such key", "did you mean canaries.masked_rows.stop?"]),
        ("not_finite.stop=1", ["there is no such key", "Keys here: mask"]),
    ],
)
def test_what_a_canary_cannot_do_is_refused_in_words(override: str, said: Sequence[str], tmp_path: Path) -> None:
    yaml = tmp_path / "experiment.yaml"
    yaml.write_text("run_dir: run\nseed: 0\npolicy: {path: none}\nenvironments: {math/Arithmetic-v0: {}}\n")
    with pytest.raises(ConfigError) as error:
        load_config(yaml, ["train.num_steps=1", f"canaries.{override}"])
    assert all(text in str(error.value) for text in said), str(error.value)
    assert error.value.exit_code == 2
