import random

import pytest

from rl.tasks.ledger import Ledger, LedgerError


def test_ordinals_are_handed_out_in_order() -> None:
    ledger = Ledger()
    assert [ledger.start() for _ in range(3)] == [0, 1, 2]


def test_an_ordinal_cannot_be_finished_twice_or_before_it_started() -> None:
    ledger = Ledger()
    assert ledger.start() == 0
    with pytest.raises(LedgerError, match="task 0 was finished without being played"):
        ledger.finish(0, masked=False)
    ledger.play([0])
    ledger.finish(0, masked=False)
    with pytest.raises(LedgerError, match="task 0 is not in flight"):
        ledger.finish(0, masked=False)
    with pytest.raises(LedgerError, match="task 5"):
        ledger.play([5])


def test_what_was_in_flight_is_played_again_first_and_only_once() -> None:
    ledger = Ledger()
    for _ in range(5):
        ledger.start()
    ledger.play([1, 2, 3])
    ledger.finish(1, masked=False)
    ledger.finish(3, masked=True)
    state = ledger.state()
    assert state == {"num_started": 5, "in_flight": [0, 2, 4], "played": [2], "masked": [3]}
    again = Ledger.from_state(state)
    assert [ordinal for ordinal in range(7) if again.is_open(ordinal)] == [0, 2, 4, 5, 6]
    assert [again.start() for _ in range(4)] == [0, 2, 4, 5]
    assert [ordinal for ordinal in range(7) if again.is_open(ordinal)] == [0, 2, 4, 5, 6]
    assert (again.state()["played"], again.state()["masked"]) == ([], [3])


@pytest.mark.parametrize("seed", range(20))
def test_killed_at_random_points_each_ordinal_is_trained_exactly_once(seed: int) -> None:
    """Asynchronous: up to 6 groups in flight, a checkpoint now and then, kills that lose everything since it."""
    rng = random.Random(seed)
    ledger, trained = Ledger(), []
    saved = (ledger.state(), list(trained))
    flying: list[int] = []
    while len(trained) < 60:
        event = rng.random()
        if event < 0.05:  # kill -9: weights and ledger go back to the checkpoint together
            ledger, trained, flying = Ledger.from_state(saved[0]), list(saved[1]), []
        elif event < 0.15:
            saved = (ledger.state(), list(trained))
        elif len(flying) < 6:
            flying.append(ledger.start())
        else:
            ordinal = flying.pop(0)
            ledger.play([ordinal])
            ledger.finish(ordinal, masked=False)
            trained.append(ordinal)
    assert len(set(trained)) == len(trained)
    finished = set(range(ledger.state()["num_started"])) - set(ledger.state()["in_flight"])
    assert set(trained) == finished


def test_the_first_open_task_is_the_oldest_that_is_neither_trained_nor_masked() -> None:
    ledger = Ledger()
    assert ledger.first_open == 0
    for _ in range(3):
        ledger.start()
    ledger.play([0, 1])
    ledger.finish(0, masked=False)
    assert (ledger.first_open, Ledger.from_state(ledger.state()).first_open) == (1, 1)
    ledger.finish(1, masked=True)
    assert ledger.first_open == 2
