"""What works at the same time? Evaluations beside updates, checkpoints beside collecting; shares of a step's time."""

import signal
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from rl.cluster.actors import ActorDied
from rl.engine.work_times import WorkTimes
from rl.file_hashes import WrittenFile
from rl.parts import LearnerDied, Parts
from rl.runs.checkpoint import latest_checkpoint
from rl.runs.history import read_history
from rl.runs.report import summary
from rl.runs.step_times import StepTimes
from rl.stop import StopRequested, handled_signals, raise_if_requested
from rl.train import train_with
from tests.fake_parts import Make, lines, log_of, making


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    with making(tmp_path) as make:
        yield make


def test_an_asynchronous_evaluation_goes_on_during_the_next_update_and_ends_before_new_weights(make: Make) -> None:
    parts = make(max_staleness=1, evaluation={"every": 1})
    train_with(parts)
    update, load = ["collect", "update"], ["publish", "load"]
    begun = ["begin to evaluate", *update, "evaluated", *load]
    before = after = ["begin to evaluate", "evaluated"]
    assert log_of(parts) == [*before, *update, *load, *begun, *begun, "save", *after]
    written = [(line["label"], line["step"]) for line in lines(parts, "evaluation")]
    assert written == [("before", 0), ("step", 1), ("step", 2), ("after", 3)]


def test_an_evaluation_that_is_broken_off_by_a_stop_is_made_by_the_resumed_run(make: Make) -> None:
    parts = make(max_staleness=1, evaluation={"every": 2})
    log_of(parts).errors["update"] = KeyboardInterrupt()
    parts.step = 2
    with pytest.raises(KeyboardInterrupt):
        train_with(parts)
    assert log_of(parts)[-2:] == ["collect", "update"]
    assert lines(parts, "evaluation") == []
    assert not parts.tracker.has_evaluation("step", 2)


def save_beside(parts: Parts, collected: BaseException | None = None) -> None:
    """Let what saves wait until groups are collected, and then wait for it; `collected` is raised there at step 2."""
    may_save, saves = threading.Event(), threading.Event()
    learner: Any = parts.learner
    save, collect = learner.save, parts.collector.collect

    def waiting_save(folder: Path, *, with_policy: bool) -> Mapping[str, WrittenFile]:
        saves.set()
        assert may_save.wait(20), "nothing is collected while the checkpoint is written"
        return save(folder, with_policy=with_policy)

    def collect_beside() -> Any:
        groups = collect()
        if parts.saving is not None:
            assert saves.wait(20)
            if collected is not None:
                threading.Timer(0.2, may_save.set).start()
                raise collected
            may_save.set()
        return groups

    learner.save, parts.collector.collect = waiting_save, collect_beside  # type: ignore[method-assign]


def test_a_checkpoint_is_written_while_groups_are_collected_and_before_the_next_update(make: Make) -> None:
    parts = make(checkpoint_every=2)
    save_beside(parts)
    train_with(parts)
    step = ["collect", "update", "publish", "load"]
    evaluation = ["evaluate", "evaluated"]
    assert log_of(parts) == [*evaluation, *step * 2, "collect", "save", *step[1:], "save", *evaluation]
    last = lines(parts, "train")[-1]
    assert last["seconds/checkpoint"] >= 0 and last["working/both"] > 0
    assert [path.name for path in sorted(parts.folder.checkpoints.glob("*"))] == ["step_000002", "step_000003"]


def test_a_checkpoint_that_cannot_be_written_ends_the_run_before_the_next_update(make: Make) -> None:
    parts = make(checkpoint_every=2)
    log_of(parts).errors["save"] = OSError(28, "No space left on device")
    with pytest.raises(Exception, match="No space left"):
        train_with(parts)
    log = log_of(parts)
    assert log.count("update") == 2 and sorted(log[-3:]) == ["collect", "save", "save"]  # the last tries to leave one


def test_a_checkpoint_that_is_being_written_when_the_learner_is_lost_is_the_newest(make: Make) -> None:
    parts = make(checkpoint_every=2)
    save_beside(parts, ActorDied("gone"))
    with pytest.raises(LearnerDied):
        train_with(parts)
    newest = latest_checkpoint(parts.folder.checkpoints)
    assert newest is not None and newest.step == 2 and parts.folder.newest == newest


def test_a_signal_does_not_break_off_what_another_thread_writes() -> None:
    raised = []

    def write() -> None:
        try:
            raise_if_requested()
        except StopRequested as stop:
            raised.append(stop)

    with handled_signals():
        signal.raise_signal(signal.SIGTERM)
        writing = threading.Thread(target=write)
        writing.start()
        writing.join()
        assert not raised
        with pytest.raises(StopRequested):
            raise_if_requested()


def test_shares_of_a_step_are_what_a_hand_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten seconds: collect 4, update 4, track 2. One engine works from 2 to 6, the other from -5 to 1 and 9 to 20."""
    times = StepTimes()
    now = iter([0.0, 4.0, 4.0, 8.0, 8.0, 10.0])
    monkeypatch.setattr("rl.runs.step_times.time.time", lambda: next(now))
    for name in ("collect", "update", "track"):
        with times.phase(name):
            pass
    assert times.seconds() == {"collect": 4.0, "update": 4.0, "track": 2.0}
    engines = [[(2.0, 6.0)], [(-5.0, 1.0), (9.0, 20.0)]]
    # the first: 2 s alone, 2 s with the learner; the second: 2 s alone. The learner: 4 s
    assert times.overlap(engines) == pytest.approx({"engines": 0.2, "learner": 0.3, "both": 0.1, "neither": 0.4})
    times.saved((0.0, 3.0))  # the learner: 7 s. The first: 1 s with it in addition, the second: 1 s
    assert times.overlap(engines) == pytest.approx({"engines": 0.1, "learner": 0.5, "both": 0.2, "neither": 0.2})
    times.clear()
    assert times.overlap([]) == {}


def test_steps_of_an_engine_that_follow_each_other_are_one_interval() -> None:
    work = WorkTimes()
    for begin, end in ((1.0, 1.5), (1.51, 2.0), (2.5, 3.0)):
        work.add(begin, end)
    assert work.take() == [(1.0, 2.0), (2.5, 3.0)]
    assert work.take() == []


def test_the_report_names_steps_without_metrics(make: Make) -> None:
    parts = make(num_steps=4)
    track, parts.tracker.track = parts.tracker.track, lambda step, metrics: None if step == 2 else track(step, metrics)
    train_with(parts)
    history = read_history(parts.folder.path)
    assert history.missing_steps == [2]
    assert "1 steps have no metrics, because the run failed between the update and its line: 2." in summary(history)
