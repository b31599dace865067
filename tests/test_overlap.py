"""What works at the same time? Evaluations beside updates; shares of a step in which engines and the learner work."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from rl.engine.work_times import WorkTimes
from rl.runs.history import read_history
from rl.runs.report import summary
from rl.runs.step_times import StepTimes
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
    assert [line["label"] for line in lines(parts, "evaluation")] == ["before"]
    assert not parts.tracker.has_evaluation("step", 2)


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
