import random

import pytest

from rl.tasks.ledger import Ledger, LedgerError


def test_ordinals_are_handed_out_in_order() -> None:
    ledger = Ledger()
    assert [ledger.start() for _ in range(3)] == [0, 1, 2]


def test_an_ordinal_cannot_be_finished_twice_or_before_it_started() -> None:
    ledger = Ledger()
    ledger.finish(ledger.start(), masked=False)
    with pytest.raises(LedgerError, match="task 0 is not in flight"):
        ledger.finish(0, masked=False)
    with pytest.raises(LedgerError, match="task 5"):
        ledger.finish(5, masked=False)


def test_what_was_in_flight_is_played_again_first_and_only_once() -> None:
    ledger = Ledger()
    for _ in range(5):
        ledger.start()
    ledger.finish(1, masked=False)
    ledger.finish(3, masked=True)
    again = Ledger.from_state(ledger.state())
    assert [again.start() for _ in range(4)] == [0, 2, 4, 5]
    assert again.state()["masked"] == [3]


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
            ledger.finish(ordinal, masked=False)
            trained.append(ordinal)
    assert len(set(trained)) == len(trained)
    finished = set(range(ledger.state()["num_started"])) - set(ledger.state()["in_flight"])
    assert set(trained) == finished
