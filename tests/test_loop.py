"""The loop and its ends, without Ray: what is checked before what, what is timed, and what each error leaves behind."""

import os
import pty
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from rl.algorithms.corrections import NonFiniteError
from rl.cluster.actors import ActorDied, ClusterError
from rl.cluster.objects import StoreFull
from rl.data_types import Group, Sample, Update
from rl.runs.canaries import CanaryStop
from rl.runs.checkpoint import latest_checkpoint
from rl.runs.files import StorageError
from rl.stop import StopRequested
from rl.train import Parts, leave_checkpoint, train_with
from rl.weights.source import WeightsLost
from tests.fake_parts import FakeCollector, FakeLearner, Make, lines, log_of, making
from tests.makers import make_group, make_task


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    with making(tmp_path) as make:
        yield make


def saved_step(parts: Parts) -> int | None:
    checkpoint = latest_checkpoint(parts.folder.checkpoints)
    return checkpoint.step if checkpoint else None


def test_a_run_evaluates_trains_each_step_in_order_and_leaves_a_checkpoint(make: Make) -> None:
    parts = make()
    train_with(parts)
    step = ["collect", "update", "publish", "load"]
    assert log_of(parts) == ["evaluate", "evaluated", *step * 3, "save", "evaluate", "evaluated"]
    assert [line["step"] for line in lines(parts, "train")] == [1, 2, 3]
    assert [line["label"] for line in lines(parts, "evaluation")] == ["before", "after"]
    assert saved_step(parts) == 3


def test_a_trained_policy_is_never_evaluated_as_the_one_before_training(make: Make) -> None:
    parts = make()
    parts.step = 2  # of a resumed run whose record lacks the first evaluation
    train_with(parts)
    assert [(line["label"], line["step"]) for line in lines(parts, "evaluation")] == [("after", 3)]


def test_every_phase_is_in_the_seconds_of_a_step(make: Make) -> None:
    parts = make(checkpoint_every=1)
    train_with(parts)
    first, second, _ = lines(parts, "train")
    assert {"seconds/collect", "seconds/update", "seconds/publish"} <= first.keys()
    assert {"seconds/track", "seconds/checkpoint"} <= second.keys()  # those of the step before
    assert second["seconds"] == pytest.approx(
        sum(value for name, value in second.items() if name.startswith("seconds/"))
    )


def test_a_phase_keeps_its_time_when_it_raises(make: Make) -> None:
    parts = make()
    with pytest.raises(ValueError), parts.phase("update"):
        raise ValueError
    assert parts.times.seconds()["update"] > 0


def test_what_actors_say_reaches_the_record(make: Make) -> None:
    parts = make()
    train_with(parts)
    assert "it is warm in here" in [line["text"] for line in lines(parts, "note")]


def fakes(parts: Parts) -> tuple[FakeLearner, FakeCollector]:
    return cast(Any, (parts.learner, parts.collector))


def test_too_many_lost_rollouts_stop_the_run_before_anything_is_trained_on_them(make: Make) -> None:
    parts = make(canaries={"masked_rows": {"window": 2}}, max_staleness=1)
    kept = parts.spool.file(make_task(7))
    assert kept is not None
    kept.write(make_group([1.0], 7))
    fakes(parts)[1].rewards = [(1.0, None, None)]
    with pytest.raises(CanaryStop, match=r"66\.7% of the rollouts"):
        train_with(parts)
    assert log_of(parts).count("update") == 1
    assert kept.read() is None  # or a resumed run would meet the same groups again
    saved = latest_checkpoint(parts.folder.checkpoints)
    assert saved is not None and saved.step == 1
    assert saved.state["canaries"]["masked_rows"] == {"steps": [[2 / 3, 3]]}  # not of the step that is played again
    assert any(line["text"].startswith("canary stops the run: 66.7%") for line in lines(parts, "note"))


def test_a_group_that_a_canary_masks_is_not_trained_and_counts_as_masked(make: Make) -> None:
    parts = make(canaries={"masked_rows": {"mask": 0.5, "stop": None}})
    fakes(parts)[1].rewards = [(1.0, 0.0), (1.0, 0.0, None, None, None)]
    train_with(parts)
    assert fakes(parts)[0].num_samples == [2, 2, 2]
    assert parts.ledger.state() == {"num_started": 6, "in_flight": [], "played": [], "masked": [1, 3, 5]}
    assert [line["canary/masked_rows/masked_groups"] for line in lines(parts, "train")] == [1, 1, 1]


def test_an_update_that_is_refused_masks_its_groups_and_is_no_step(make: Make) -> None:
    parts = make(canaries={"not_finite": {"mask": 1}})
    errors = [None, NonFiniteError("the gradient's norm is nan"), None, None]
    train_one = parts.learner.update

    def update(samples: Sequence[Sample]) -> Update:
        if error := errors.pop(0):
            raise error
        return train_one(samples)

    parts.learner.update = update  # pyright: ignore[reportAttributeAccessIssue]
    train_with(parts)
    assert parts.ledger.state() == {"num_started": 4, "in_flight": [], "played": [], "masked": [1]}
    assert [(line["step"], line["canary/not_finite"]) for line in lines(parts, "train")] == [(1, 0), (2, 1), (3, 0)]
    assert log_of(parts).count("publish") == 3


def test_a_pause_comes_with_a_checkpoint_and_before_anything_else_is_played(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = make(canaries={"mismatch": {"pause": 1.5}})
    fakes(parts)[0].mismatch = 1.6
    monkeypatch.setattr("rl.runs.pause.time.sleep", lambda seconds: parts.folder.paused_file.unlink())
    train_with(parts)
    step = ["collect", "update", "publish", "load"]
    assert log_of(parts) == ["evaluate", "evaluated", *step, "save", *step, *step, "save", "evaluate", "evaluated"]
    assert "seconds/paused" in lines(parts, "train")[1]
    said = [line["text"] for line in lines(parts, "note") if "pause" in line["text"]]
    assert [text.split()[0] for text in said] == ["canary", "paused", "pause"]


def test_a_pause_that_nobody_ends_stops_the_run_with_the_checkpoint_it_began_with(make: Make) -> None:
    parts = make(canaries={"mismatch": {"pause": 1.5}, "pause_timeout_s": 1e-9})
    fakes(parts)[0].mismatch = 1.6
    with pytest.raises(CanaryStop, match=r"canaries.pause_timeout_s"):
        train_with(parts)
    assert log_of(parts).count("save") == saved_step(parts) == 1


def test_a_policy_that_the_engine_does_not_compute_is_never_served(make: Make) -> None:
    parts = make()
    fakes(parts)[0].mismatch = 9.0
    with pytest.raises(CanaryStop, match="mismatch between learner and engine is 9"):
        train_with(parts)
    assert "publish" not in log_of(parts)
    assert saved_step(parts) is None  # nor saved over a good one


@pytest.mark.parametrize(
    ("call", "error", "raised", "step"),
    [
        ("collect", ClusterError("collecting groups took longer than 900 s"), ClusterError, 0),
        ("collect", RuntimeError("nobody foresaw it"), RuntimeError, 0),
        ("publish", ClusterError("publishing weights took longer than 120 s"), ClusterError, 1),
        ("load", ClusterError("worker 0 died and could not be replaced"), ClusterError, 1),
        ("update", NonFiniteError("a logprob is not finite"), CanaryStop, 0),
        ("collect", KeyboardInterrupt(), KeyboardInterrupt, 0),
        ("update", StoreFull("no room for the rows"), StoreFull, 0),  # the learner was not called
    ],
)
def test_an_error_between_two_steps_leaves_a_checkpoint_of_the_last_one(
    make: Make, call: str, error: BaseException, raised: type[BaseException], step: int
) -> None:
    parts = make()
    log_of(parts).errors[call] = error
    with pytest.raises(raised):
        train_with(parts)
    assert saved_step(parts) == step == parts.step
    saved = latest_checkpoint(parts.folder.checkpoints)
    assert saved is not None
    trained = saved.state["ledger"]["num_started"] - len(saved.state["ledger"]["in_flight"])
    assert trained == step
    assert [line["step"] for line in lines(parts, "train")] == list(range(1, step + 1))  # also if it was not published
    assert list(parts.folder.rollouts_files("train")) == list(range(1, step + 1))


def test_policies_are_saved_every_k_th_step_and_with_the_last(make: Make) -> None:
    parts = make(checkpoint_every=1, save_policy_every=2)
    train_with(parts)
    assert [call for call in log_of(parts) if call.startswith("save")] == ["save slices", "save", "save"]


def test_a_stop_leaves_slices_alone_and_the_end_of_a_resumed_run_adds_the_policy(make: Make) -> None:
    parts = make(save_policy_every=100, num_steps=4)
    parts.step = 3
    leave_checkpoint(parts)
    stopped = parts.folder.newest
    assert stopped is not None and stopped.step == 3 and not stopped.has_policy
    parts.config = parts.config.model_copy(update={"train": parts.config.train.model_copy(update={"num_steps": 3})})
    train_with(parts)
    ended = latest_checkpoint(parts.folder.checkpoints)
    assert ended is not None and ended.step == 3 and ended.has_policy and ended == parts.folder.newest


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("update", ActorDied("OutOfMemoryError")),
        ("collect", WeightsLost("of version 3")),  # found by an engine that is replaced, because its node is lost too
    ],
)
def test_a_learner_that_died_leaves_none_and_says_how_to_go_on(make: Make, call: str, error: Exception) -> None:
    parts = make()
    log_of(parts).errors[call] = error
    with pytest.raises(ClusterError, match="the learner died; --resume goes on from the newest checkpoint"):
        train_with(parts)
    assert saved_step(parts) is None


def test_an_error_within_an_update_leaves_the_checkpoint_before_it(make: Make) -> None:
    parts = make(checkpoint_every=1)

    def fail(samples: Sequence[Sample]) -> Update:
        raise ClusterError("an update took longer than 900 s")

    train_one = parts.learner.update

    def update(samples: Sequence[Sample]) -> Update:
        return train_one(samples) if parts.step == 0 else fail(samples)

    parts.learner.update = update  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ClusterError, match="an update took longer"):
        train_with(parts)
    assert saved_step(parts) == 1


def test_a_checkpoint_that_cannot_be_written_does_not_hide_why_the_run_ended(make: Make) -> None:
    parts = make()
    log_of(parts).errors |= {"collect": RuntimeError("the reason"), "save": OSError("the disk is full")}
    with pytest.raises(RuntimeError, match="the reason"):
        train_with(parts)


@pytest.mark.parametrize("kind", ["pipe", "terminal"])
def test_a_stop_leaves_a_checkpoint_also_when_nobody_reads_the_output(
    make: Make, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after Ctrl-C on `rl train ... | tee log`, which ends tee too, and in a terminal that was closed."""
    reader, writer = os.pipe() if kind == "pipe" else pty.openpty()
    parts = make()
    log_of(parts).errors["collect"] = StopRequested("SIGINT", 130)
    os.close(reader)
    with open(writer, "w", encoding="utf-8") as stdout, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", stdout)
        with pytest.raises(StopRequested) as stopped:
            train_with(parts)
        print("what other code prints ends nothing either", flush=True)
    assert (stopped.value.exit_code, saved_step(parts)) == (130, 0)


def test_notes_that_cannot_be_written_do_not_keep_the_checkpoint_from_it(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = make()

    def note(step: int, text: str) -> None:
        raise StorageError("the disk is full")

    def collect() -> list[Group]:
        fakes(parts)[0].said = ["it gets warmer"]
        monkeypatch.setattr(parts.tracker, "note", note)
        raise RuntimeError("the reason")

    monkeypatch.setattr(parts.collector, "collect", collect)
    with pytest.raises(RuntimeError, match="the reason"):
        train_with(parts)
    assert saved_step(parts) == 0


def test_rollouts_of_an_evaluation_are_saved_before_anything_can_fail_on_them(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = make()

    def fail(groups: Sequence[Group]) -> dict[str, float]:
        raise ValueError("an environment that cannot be made")

    monkeypatch.setattr("rl.train.evaluation_metrics", fail)
    with pytest.raises(ValueError, match="cannot be made"):
        train_with(parts)
    assert parts.folder.rollouts_files("evaluation")
