"""Which points does a seed of `benchmarks.chaos` draw, and what does it count?"""

from benchmarks.chaos import FULL, SHORT, draw, summary


def test_chaos_draws_every_fault_and_staleness_before_one_comes_again() -> None:
    points = draw(0, 30, FULL)
    assert points == draw(0, 30, FULL) != draw(1, 30, FULL)
    for begin in (0, len(FULL.faults)):
        assert {point.fault for point in points[begin : begin + len(FULL.faults)]} == set(FULL.faults)
    assert all({point.staleness for point in points[begin : begin + 4]} == {0, 1, 2, 4} for begin in (0, 4, 8))
    assert {point.moment.step for point in points} <= set(range(6)) and len({point.moment for point in points}) == 30
    assert {point.staleness for point in draw(0, 2, SHORT)} == {0, 2}


def test_chaos_counts_what_breaks_the_contract() -> None:
    kept = {"codes": [-9, 0], "lost": 0, "twice": 0, "poisoned": 0, "masked_without_reason": 0, "has_the_bits": True}
    kept |= {"has_ended": True, "has_true_codes": True, "is_told": True, "processes_left": [], "shared_memory_left": []}
    broken = {**kept, "codes": [0], "lost": 2, "poisoned": 1, "has_the_bits": False, "is_told": False}
    ended = {**kept, "codes": [1] * 4, "has_ended": False, "has_the_bits": None, "processes_left": ["a", "b"]}
    assert summary([kept, broken, ended]) == {
        "points": 3,
        "synchronous_points": 2,
        "attempts": 7,
        "lost": 2,
        "twice": 0,
        "poisoned": 1,
        "masked_without_reason": 0,
        "without_the_bits": 1,
        "not_ended": 1,
        "untrue_codes": 0,
        "not_told": 1,
        "processes_left": 2,
        "shared_memory_left": 0,
    }
