"""As many groups are in flight as keep the learner busy, and no more."""

import pytest

from rl.rollouts.admission import Admission


def waited(num_in_flight: int, num_prompts: int, sampling_s: float, training_s: float) -> float:
    """Of a step, if engines sample P groups in `sampling_s`: those that were in flight during the update are there."""
    during = min(num_in_flight - num_prompts, int(num_prompts * training_s / sampling_s))
    return max(0.0, sampling_s * (1 - during / num_prompts))


def after(num_steps: int, sampling_s: float, max_staleness: int) -> tuple[int, float]:
    """Groups in flight, and the share of the newest 50 steps that a learner of 1 s a step waited."""
    admission, shares = Admission(16, max_staleness), []
    for _ in range(num_steps):
        seconds = waited(admission.num_in_flight, 16, sampling_s, 1.0)
        shares.append(seconds / (1.0 + seconds))
        admission.follow(seconds, 1.0 + seconds)
    return admission.num_in_flight, sum(shares[-50:]) / 50


def test_a_run_begins_with_the_most_groups_that_the_bound_allows() -> None:
    assert [Admission(16, bound).num_in_flight for bound in (0, 1, 4)] == [16, 32, 80]


def test_a_step_of_waiting_starts_more_and_a_step_without_starts_fewer() -> None:
    admission = Admission(16, 2)
    admission.follow(0.0, 1.0)
    assert admission.num_in_flight == 44  # a quarter of the 16 above two steps' fewer
    admission.follow(0.14, 1.0)  # the running mean is 0.3 * 0.14 = 0.042: neither much nor little
    assert admission.num_in_flight == 44
    admission.follow(0.14, 1.0)  # 0.042 + 0.3 * (0.14 - 0.042) = 0.0714
    assert admission.num_in_flight == 48
    admission.follow(1.0, 1.0)
    assert admission.num_in_flight == 48  # the most


def test_a_single_step_that_waits_long_starts_no_more_groups_and_a_second_one_does() -> None:
    admission = Admission(16, 2)
    for _ in range(10):
        admission.follow(0.0, 1.0)
    before = admission.num_in_flight
    admission.follow(8.0, 10.0)  # 0.3 * 0.15 = 0.045
    assert admission.num_in_flight == before
    admission.follow(8.0, 10.0)  # 0.045 + 0.3 * 0.105
    assert admission.num_in_flight == before + 4


def test_a_surplus_of_many_steps_is_gone_after_a_few() -> None:
    admission, in_flight = Admission(16, 8), []  # 144 groups
    for _ in range(12):
        admission.follow(0.0, 1.0)
        in_flight.append(admission.num_in_flight)
    assert in_flight == [116, 95, 80, 68, 59, 53, 48, 44, 41, 39, 37, 35]  # a quarter of what is above 32, at least 2


def test_a_synchronous_run_always_has_the_groups_of_one_step() -> None:
    admission = Admission(16, 0)
    for waited_s in (0.0, 0.0, 0.9, 0.9):
        admission.follow(waited_s, 1.0)
        assert admission.num_in_flight == 16


@pytest.mark.parametrize(("rounds", "fewest"), [(1, 16), (2, 32), (3, 48), (9, 48)])
def test_the_groups_of_all_sampling_rounds_stay_in_flight_as_far_as_the_bound_allows(rounds: int, fewest: int) -> None:
    admission = Admission(16, 2, rounds)
    for _ in range(50):
        admission.follow(0.0, 1.0)
    assert admission.num_in_flight == fewest


@pytest.mark.parametrize("max_staleness", [1, 2, 4])
def test_where_sampling_is_quicker_tokens_stay_young_and_the_learner_hardly_waits(max_staleness: int) -> None:
    for sampling_s in (0.1, 0.5, 0.9):
        num_in_flight, wait_share = after(300, sampling_s, max_staleness)
        assert wait_share < 0.06
        assert 16 < num_in_flight <= 36  # those of the next step, and the quarter that a wait adds


def test_where_sampling_is_slower_all_groups_that_the_bound_allows_are_in_flight() -> None:
    assert after(300, sampling_s=2.0, max_staleness=3)[0] == 64
