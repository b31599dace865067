import os
import signal
from collections.abc import Iterator

import pytest

from rl.stop import StopRequested, deferred_stop, handled_signals, raise_if_requested, raised_signals, take_go_on


@pytest.fixture(autouse=True)
def handled() -> Iterator[None]:
    with handled_signals():
        yield


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_with_the_exit_code_that_tells_which(number: int, exit_code: int) -> None:
    os.kill(os.getpid(), number)
    with pytest.raises(StopRequested) as stopped:
        raise_if_requested()
    assert stopped.value.exit_code == exit_code


def test_a_stop_is_raised_once_so_that_the_checkpoint_after_it_can_be_written() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(StopRequested):
        raise_if_requested()
    raise_if_requested()


def test_a_deferred_stop_comes_when_the_block_is_complete() -> None:
    done = []
    with pytest.raises(StopRequested), deferred_stop():
        os.kill(os.getpid(), signal.SIGTERM)
        raise_if_requested()
        done.append("all of it")
    assert done == ["all of it"]


def test_the_signal_to_go_on_is_heard_once_and_stops_nothing() -> None:
    os.kill(os.getpid(), signal.SIGUSR1)
    raise_if_requested()
    assert [take_go_on(), take_go_on()] == [True, False]


def test_a_command_without_a_state_to_keep_stops_at_once() -> None:
    with pytest.raises(StopRequested, match="SIGTERM") as stopped, raised_signals():
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("it goes on")
    assert stopped.value.exit_code == 143
    raise_if_requested()  # nothing is recorded


def test_the_handlers_of_before_are_restored() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with handled_signals():
        assert signal.getsignal(signal.SIGTERM) is before
    assert signal.getsignal(signal.SIGTERM) is before
