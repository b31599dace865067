"""Logical time: when the clock admits a request, and when a lane gets a seat."""

import pytest

from rl.engine.clock import Clock


def test_the_clock_admits_a_second_request_exactly_d_steps_after_the_first_reply() -> None:
    clock = Clock(lockstep_steps=3, num_seats=100)
    one, two = clock.open(2)
    clock.ask(two)
    assert clock.admit(is_busy=False) == []  # the first lane is due too
    assert clock.overdue() == [one]
    clock.ask(one)
    assert clock.admit(is_busy=False) == [one, two]  # in lane order
    clock.step = 5
    clock.finish(one)
    clock.ask(one)
    clock.step = 7
    assert clock.admit(is_busy=True) == []
    clock.step = 8
    assert clock.admit(is_busy=True) == [one]


def test_the_clock_of_an_idle_engine_jumps_to_the_next_due_lane() -> None:
    clock = Clock(lockstep_steps=4, num_seats=100)
    one, two = clock.open(2)
    for place in (one, two):
        clock.ask(place)
    clock.admit(is_busy=False)
    clock.step = 2
    clock.finish(one)  # due at 6
    clock.step = 3
    clock.finish(two)  # due at 7
    clock.ask(two)
    assert clock.admit(is_busy=False) == []
    assert (clock.step, clock.overdue()) == (6, [one])
    clock.close(one)
    assert clock.admit(is_busy=False) == [two]
    assert clock.step == 7


def test_a_clock_without_lockstep_admits_in_order_of_asking() -> None:
    clock = Clock(lockstep_steps=0, num_seats=100)
    one, two = clock.open(2)
    clock.ask(two)
    clock.ask(one)
    assert clock.admit(is_busy=True) == [two, one]
    with pytest.raises(ValueError, match="running"):
        clock.ask(one)


def test_a_lane_waits_until_the_next_request_of_one_that_left_would_have_been_due() -> None:
    clock = Clock(lockstep_steps=3, num_seats=1)
    one, two, three = clock.open(3)
    assert (one.state, two.state, three.state) == ("idle", "waiting", "waiting")
    clock.ask(one)
    assert clock.admit(is_busy=False) == [one]
    clock.step = 5
    clock.finish(one)  # its next request would be due at 8
    clock.close(one)
    clock.step = 7
    assert clock.admit(is_busy=True) == []
    assert two.state == "waiting"
    clock.step = 8
    assert clock.admit(is_busy=True) == []
    assert (two.state, two.due, three.state) == ("idle", 11, "waiting")
    clock.close(three)  # withdrawn before it had a seat
    clock.ask(two)
    assert clock.admit(is_busy=False) == [two]
    assert clock.step == 11


def test_an_idle_clock_with_waiting_lanes_jumps_to_where_a_seat_is_free() -> None:
    clock = Clock(lockstep_steps=3, num_seats=1)
    one, two = clock.open(2)
    clock.ask(one)
    clock.admit(is_busy=False)
    clock.step = 5
    clock.finish(one)
    clock.close(one)
    assert clock.admit(is_busy=False) == []
    assert (clock.step, two.state, two.due) == (8, "idle", 11)


def test_who_opens_an_empty_house_is_seated_at_once() -> None:
    clock = Clock(lockstep_steps=3, num_seats=1)
    (one,) = clock.open(1)
    clock.ask(one)
    clock.admit(is_busy=False)
    clock.step = 5
    clock.finish(one)
    clock.close(one)
    (two,) = clock.open(1)  # whether or not the engine has looked at the clock in between
    assert (two.state, two.due) == ("idle", 5)
