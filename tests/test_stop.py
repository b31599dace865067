import os
import signal

import pytest

from rl.stop import StopRequested, StopSignal


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_with_the_exit_code_that_tells_which(number: int, exit_code: int) -> None:
    with StopSignal().installed(), pytest.raises(StopRequested) as stopped:
        os.kill(os.getpid(), number)
    assert stopped.value.exit_code == exit_code


def test_a_deferred_stop_comes_when_the_block_is_complete() -> None:
    done = []
    stop = StopSignal()
    with stop.installed(), pytest.raises(StopRequested), stop.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        done.append("all of it")
    assert done == ["all of it"]


def test_the_handlers_of_before_are_restored() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopSignal().installed():
        pass
    assert signal.getsignal(signal.SIGTERM) is before
