"""Notes: what code in an actor logs as a warning is kept until somebody takes it."""

import logging

from rl.cluster.notes import MOST, Notes


def test_warnings_of_our_packages_are_kept_once_with_their_traceback() -> None:
    notes = Notes()
    logging.getLogger("rl.engine.thread").warning("gave up %d lanes", 3)
    logging.getLogger("vllm").warning("not ours")
    logging.getLogger("envs.registry").info("not a warning")
    try:
        raise ValueError("singular")
    except ValueError:
        logging.getLogger("rl.x").exception("it failed")
    first, second = notes.take()
    assert first == "gave up 3 lanes"
    assert second.startswith("it failed\nTraceback") and "ValueError: singular" in second
    assert notes.take() == ()


def test_a_flood_of_warnings_is_bounded() -> None:
    notes = Notes()
    for number in range(MOST + 5):
        logging.getLogger("envs").warning("%d", number)
    assert notes.take()[0] == "5"
