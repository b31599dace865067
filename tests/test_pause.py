"""A pause: who lets the run go on, and what else ends it. Nothing here waits: sleeping does what others would do."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rl.runs import pause
from rl.runs.canaries import CanaryStop
from rl.runs.pause import ask_to_pause, wait_to_go_on
from rl.stop import StopRequested, handled_signals


@pytest.fixture(autouse=True)
def handled() -> Iterator[None]:
    with handled_signals():
        yield


@pytest.fixture
def paused(tmp_path: Path) -> Path:
    ask_to_pause(tmp_path / "paused", ["the reward fell", "the mismatch rose"])
    return tmp_path / "paused"


def meanwhile(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """What happens while a run waits."""
    monkeypatch.setattr(pause.time, "sleep", lambda seconds: act())


def wait(paused: Path, timeout_s: float = 60.0) -> list[str]:
    said: list[str] = []
    wait_to_go_on(paused, timeout_s, said.append)
    return said


def test_without_a_reason_there_is_no_pause(tmp_path: Path) -> None:
    ask_to_pause(tmp_path / "paused", [])
    assert not (tmp_path / "paused").exists()
    assert wait(tmp_path / "paused") == ["pause over"]


def test_a_signal_lets_the_run_go_on_and_removes_the_file(paused: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meanwhile(monkeypatch, lambda: os.kill(os.getpid(), signal.SIGUSR1))
    said, last = wait(paused)
    assert not paused.exists()
    assert "the reward fell\nthe mismatch rose" in said and last == "pause over"
    assert f"remove {paused}" in said and f"kill -USR1 {os.getpid()}" in said


def test_a_person_pauses_a_run_by_an_empty_file_and_removes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paused = tmp_path / "paused"
    paused.touch()
    meanwhile(monkeypatch, paused.unlink)
    assert "somebody made the file" in wait(paused)[0]


def test_a_signal_from_before_the_pause_does_not_end_it(paused: Path) -> None:
    os.kill(os.getpid(), signal.SIGUSR1)
    with pytest.raises(CanaryStop):
        wait(paused, 0.0)


def test_a_stop_ends_the_waiting_and_the_run_stays_paused(paused: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meanwhile(monkeypatch, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(StopRequested, match="SIGTERM"):
        wait(paused)
    assert paused.exists()


def test_a_pause_that_nobody_ends_stops_the_run_with_exit_code_3(paused: Path) -> None:
    with pytest.raises(CanaryStop, match=r"within 0 s \(canaries.pause_timeout_s\); remove .*paused, then") as stop:
        wait(paused, 0.0)
    assert stop.value.exit_code == 3 and paused.exists()
