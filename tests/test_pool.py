"""The pool: a dead worker costs what it had not finished, and a group that kills workers costs itself only."""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rl.cluster.actors import ActorDied, Deadline, DeadlinePassed
from rl.cluster.address import ClusterError
from rl.data_types import Group, Outcome
from rl.engine.protocol import EngineError
from rl.rollouts.loading import WeightHashError
from rl.rollouts.pool import WorkerPool
from rl.rollouts.worker import GroupSpec, Played, RolloutWorker
from rl.runs.differences import ReplayDiffers
from rl.runs.folder import RunFolder
from rl.runs.recording import Recording, read_attempts
from rl.weights.source import WeightSource
from tests.makers import make_config, make_rollout, make_task, make_update

SOON = Deadline(1.0, "collecting groups", "train.collect_timeout_s")


class FakePending:
    """The answer of a call, made when somebody waits for it or looks."""

    def __init__(self, answer: Callable[[], Any], is_done: bool = True) -> None:
        self._answer = answer
        self._is_done = is_done

    def is_done(self) -> bool:
        return self._is_done

    def wait(self, deadline: Deadline) -> Any:
        was_done, self._is_done = self._is_done, True
        try:
            return self._answer()
        except DeadlinePassed:
            self._is_done = was_done
            raise


class FakeWorker:
    """Plays at once and dies of the ordinals in `poison`, with all that it has in flight."""

    def __init__(self, poison: Sequence[int] = (), hash: str | None = None) -> None:
        self.poison = poison
        self.hash = hash
        self.calls: list[list[int]] = []
        self.sources: list[int] = []
        self.is_dead = self.is_stopped = False
        self.finished: set[int] = set()

    def call(self, method: Callable[..., Any], *args: Any) -> FakePending:
        if method is RolloutWorker.play_groups:
            (specs,) = args
            ordinals = [spec.task.ordinal for spec in specs]
            self.calls.append(ordinals)
            self.is_dead |= bool(set(ordinals) & set(self.poison))
            is_done = not self.is_dead or bool(self.finished & set(ordinals))
            return FakePending(lambda: self._play(specs), is_done)
        if method is RolloutWorker.load_weights:
            self.sources.append(args[0].version)
            return FakePending(lambda: self._alive(self.hash or args[0].hash))
        return FakePending(lambda: None)

    def stop(self, shutdown: Callable[..., Any]) -> None:
        self.is_stopped = True

    def _play(self, specs: Sequence[GroupSpec]) -> Played:
        if not self.finished & {spec.task.ordinal for spec in specs}:
            self._alive(None)
        return Played([play(spec) for spec in specs], ("it is warm in here",))

    def _alive(self, answer: Any) -> Any:
        if self.is_dead:
            raise ActorDied("OutOfMemoryError: killed")
        return answer


def play(spec: GroupSpec) -> Group:
    members = tuple(make_rollout(task=spec.task, member=member) for member in range(spec.group_size))
    return Group(spec.group_id, spec.task, members)


def spec(ordinal: int) -> GroupSpec:
    return GroupSpec(f"0-{ordinal}", make_task(ordinal), 2, 1.0)


def make_pool(*workers: FakeWorker, num_workers: int = 1, num_retries: int = 1, max_staleness: int = 1) -> WorkerPool:
    """A pool that starts these workers one after the other."""
    train = {"num_steps": 2, "num_prompts": 2, "group_size": 2, "max_staleness": max_staleness}
    config = make_config(train=train, rollout={"num_workers": num_workers, "num_retries": num_retries})
    left = list(workers)
    places: Any = range(num_workers)
    return WorkerPool(config, config.run_dir, places, start=lambda place: left.pop(0))  # pyright: ignore[reportArgumentType]


def ordinals(groups: Sequence[Group]) -> list[int]:
    return [group.task.ordinal for group in groups]


def masked(groups: Sequence[Group]) -> list[int]:
    return [group.task.ordinal for group in groups if not group.rollouts[0].outcome.counts]


def test_groups_come_in_the_order_in_which_they_were_handed_over_and_notes_with_them() -> None:
    pool = make_pool(FakeWorker())
    groups = pool.collect(pool.play(0, [spec(3), spec(1)]), SOON)
    assert ordinals(groups) == [3, 1]
    assert pool.notes() == ["worker 0: it is warm in here"]
    assert pool.notes() == []


@pytest.mark.parametrize("max_staleness", [0, 1])
def test_a_group_that_kills_a_worker_alone_is_masked_and_its_neighbours_are_played(max_staleness: int) -> None:
    together = [] if max_staleness else [FakeWorker([2])]
    first, second, third = FakeWorker([2]), FakeWorker([2]), FakeWorker()
    pool = make_pool(first, *together, second, third, max_staleness=max_staleness)
    groups = pool.collect(pool.play(0, [spec(number) for number in range(5)]), SOON)
    assert ordinals(groups) == [0, 1, 2, 3, 4]
    assert masked(groups) == [2]
    assert f"{2 + len(together)} workers died while they played it" in groups[2].rollouts[0].error
    assert "OutOfMemoryError" in groups[2].rollouts[0].error
    assert [rollout.outcome for rollout in groups[2].rollouts] == [Outcome.INFRA_ERROR] * 2
    for worker in (first, *together):  # of a synchronous run, whose bits are those of an undisturbed one
        assert worker.calls == [[0, 1, 2, 3, 4]]
    assert second.calls == [[0], [1], [2]]  # one at a time, so that the cause is known
    assert third.calls == [[3], [4]]
    assert first.is_stopped and second.is_stopped


def test_a_worker_that_died_by_chance_costs_a_second_attempt_and_no_group() -> None:
    pool = make_pool(FakeWorker([0]), FakeWorker())
    assert masked(pool.collect(pool.play(0, [spec(0), spec(1)]), SOON)) == []
    assert any("died and is replaced" in note for note in pool.notes())


def test_without_retries_what_was_in_flight_is_masked() -> None:
    pool = make_pool(FakeWorker([0]), FakeWorker(), num_retries=0)
    assert masked(pool.collect(pool.play(0, [spec(0), spec(1)]), SOON)) == [0, 1]


def test_finished_groups_of_a_dead_worker_are_kept() -> None:
    first, second = FakeWorker([2]), FakeWorker()
    first.finished = {1}
    pool = make_pool(first, second)
    plays = [pool.play(0, [spec(number)]) for number in (2, 1, 0)]
    groups = [group for play in plays for group in pool.collect(play, SOON)]
    assert ordinals(groups) == [2, 1, 0]
    assert masked(groups) == []
    assert second.calls == [[2], [0]]


def test_a_group_that_was_kept_outlives_the_worker_that_takes_the_answer_along() -> None:
    class Keeper:
        def write(self, group: Group) -> None: ...

        def read(self) -> Group | None:
            return play(spec(1))

    second = FakeWorker([0])
    pool = make_pool(FakeWorker([0, 1]), second, FakeWorker())
    plays = [pool.play(0, [spec(0)]), pool.play(0, [replace(spec(1), keeper=Keeper())])]
    assert [masked(pool.collect(one, SOON)) for one in plays] == [[0], []]
    assert second.calls == [[0]]


def test_a_recorded_death_is_repeated_with_the_groups_that_it_cost(tmp_path: Path) -> None:
    """The worker that is repeated lives, so it has played more than the recorded one had."""
    run = RunFolder(tmp_path)
    with closing(Recording(run)) as recording:
        recording.begin(make_config(tmp_path), 0, tmp_path / "spool", is_again=False)
        first = FakeWorker([2])
        first.finished = {1}
        pool = make_pool(first, FakeWorker())
        pool.record(recording)
        plays = [pool.play(0, [spec(number)]) for number in (2, 1, 0)]
        recorded = [group for play in plays for group in pool.collect(play, SOON)]
        recording.updated(1, make_update(1))
    (attempt,) = read_attempts(run)
    with closing(Recording(RunFolder(tmp_path / "replay"), attempt)) as recording:
        recording.begin(make_config(tmp_path), 0, tmp_path / "spool", is_again=False)
        first, second = FakeWorker(), FakeWorker()
        pool = make_pool(first, second)
        pool.record(recording)
        plays = [pool.play(0, [spec(number)]) for number in (2, 1, 0)]
        assert [group for play in plays for group in pool.collect(play, SOON)] == recorded
        assert first.is_stopped and not first.is_dead
        assert second.calls == [[2], [0]]
        assert pool.notes()[1:2] == ["worker 0 died and is replaced: OutOfMemoryError: killed"]
        second.poison = [3]
        with pytest.raises(ReplayDiffers, match="a worker failed"):
            pool.collect(pool.play(0, [spec(3)]), SOON)


def test_groups_handed_over_after_a_death_wait_until_the_suspects_have_been_played() -> None:
    pool = make_pool(FakeWorker([0]), FakeWorker([0]), third := FakeWorker())
    plays = [pool.play(0, [spec(0)]), pool.play(0, [spec(1)])]
    assert masked(pool.collect(plays[0], SOON)) == [0]
    assert third.calls == []
    late = pool.play(0, [spec(2)])
    assert masked(pool.collect(plays[1], SOON)) == masked(pool.collect(late, SOON)) == []
    assert third.calls == [[1], [2]]


def test_a_worker_that_dies_while_weights_are_published_is_replaced_once() -> None:
    dead, fresh = FakeWorker([7]), FakeWorker()
    pool = make_pool(dead, fresh)
    play = pool.play(0, [spec(7)])
    pool.load_weights(WeightSource(3, "", "hash"))
    pool.wait_until_loaded()
    fresh.poison = ()
    assert masked(pool.collect(play, SOON)) == []
    assert fresh.sources == [3]
    assert fresh.calls == [[7]]


def test_a_worker_that_hangs_is_replaced_at_the_deadline_and_its_groups_are_played_again() -> None:
    class Hanging(FakeWorker):
        def _play(self, specs: Sequence[GroupSpec]) -> Played:
            raise DeadlinePassed("collecting groups took longer than 900 s")

    fresh = FakeWorker()
    pool = make_pool(Hanging(), fresh)
    assert masked(pool.collect(pool.play(0, [spec(0), spec(1)]), SOON)) == []
    assert fresh.calls == [[0], [1]]


def test_a_group_that_hangs_alone_is_masked_and_a_run_of_which_all_hang_ends() -> None:
    class Hanging(FakeWorker):
        def __init__(self, ordinals: Sequence[int]) -> None:
            super().__init__()
            self.ordinals = ordinals

        def _play(self, specs: Sequence[GroupSpec]) -> Played:
            if any(spec.task.ordinal in self.ordinals for spec in specs):
                raise DeadlinePassed("collecting groups took longer than 900 s")
            return super()._play(specs)

    pool = make_pool(*(Hanging([1]) for _ in range(3)))
    groups = pool.collect(pool.play(0, [spec(0), spec(1), spec(2)]), SOON)
    assert masked(groups) == [1]
    assert "2 workers died while they played it, the last of: collecting groups took" in groups[1].rollouts[0].error
    pool = make_pool(*(Hanging([0, 1]) for _ in range(3)))
    with pytest.raises(DeadlinePassed):
        pool.collect(pool.play(0, [spec(0), spec(1)]), SOON)


@pytest.mark.parametrize("answers", [True, False])
def test_a_worker_whose_process_does_not_answer_is_replaced_before_the_deadline(
    answers: bool, caplog: pytest.LogCaptureFixture
) -> None:
    class Slow(FakeWorker):
        num_waits = 0

        def call(self, method: Callable[..., Any], *args: Any) -> FakePending:
            if method is RolloutWorker.wait_until_ready:
                return FakePending(lambda: None, is_done=answers)
            if method is RolloutWorker.doing:
                return FakePending(lambda: "2 rollouts are in environment code")
            return FakePending(lambda: self._play(*args), is_done=False)

        def _play(self, specs: Sequence[GroupSpec]) -> Played:
            self.num_waits += 1
            if self.num_waits < 3:
                raise DeadlinePassed("collecting groups took longer than 120 s")
            return super()._play(specs)

    slow, fresh = Slow(), FakeWorker()
    pool = make_pool(slow, fresh)
    play = pool.play(0, [spec(0)])
    assert masked(pool.collect(play, Deadline(900.0, "collecting groups", "train.collect_timeout_s"))) == []
    assert fresh.calls == ([] if answers else [[0]])
    told = [note for note in pool.notes() if "has not answered for 120 s (rollout.heartbeat_timeout_s)" in note]
    assert len(told) == (0 if answers else 1)
    waits = "s for 1 groups (math/Arithmetic-v0; the first is 0-0) of worker 0: 2 rollouts are in environment code"
    assert [waits in said for said in caplog.messages] == [True, True] * answers


def test_a_worker_that_does_not_load_weights_in_time_is_replaced() -> None:
    class Stuck(FakeWorker):
        def _alive(self, answer: Any) -> Any:
            raise DeadlinePassed("publishing weights took longer than 120 s")

    fresh = FakeWorker()
    pool = make_pool(Stuck(), fresh)
    pool.load_weights(WeightSource(3, "", "hash"))
    pool.wait_until_loaded()
    assert fresh.sources == [3]


def test_a_worker_that_dies_while_it_is_replaced_is_told_as_what_it_is() -> None:
    """It must not look like the learner's death, which costs the checkpoint."""

    class DiesOfWeights(FakeWorker):
        def call(self, method: Callable[..., Any], *args: Any) -> FakePending:
            if method is RolloutWorker.load_weights:
                self.is_dead = True
            return super().call(method, *args)

    pool = make_pool(FakeWorker([7]), DiesOfWeights(), DiesOfWeights())
    pool.play(0, [spec(7)])
    pool.load_weights(WeightSource(3, "", "hash"))
    with pytest.raises(ClusterError, match="worker 0 died and could not be replaced: OutOfMemoryError"):
        pool.wait_until_loaded()


def test_an_engine_that_loaded_other_bytes_stops_the_run() -> None:
    pool = make_pool(FakeWorker(hash="other"))
    pool.load_weights(WeightSource(3, "", "hash"))
    with pytest.raises(WeightHashError, match="version 3"):
        pool.wait_until_loaded()


def test_a_worker_that_cannot_be_replaced_ends_the_run_in_words() -> None:
    class Unborn(FakeWorker):
        def call(self, method: Callable[..., Any], *args: Any) -> FakePending:
            return FakePending(self._fail)

        def _fail(self) -> None:
            raise ActorDied("no node has room")

    second = FakeWorker()
    pool = make_pool(FakeWorker([0]), Unborn(), second)
    assert masked(pool.collect(pool.play(0, [spec(0)]), SOON)) == []
    assert second.calls == [[0]]
    pool = make_pool(FakeWorker([0]), Unborn(), Unborn())
    with pytest.raises(ClusterError, match="worker 0 died and could not be replaced: no node has room"):
        pool.collect(pool.play(0, [spec(0)]), SOON)


def test_an_engine_that_failed_counts_as_a_dead_worker() -> None:
    class Broken(FakeWorker):
        def _alive(self, answer: Any) -> Any:
            raise EngineError("the engine failed")

    pool = make_pool(Broken(), FakeWorker())
    assert masked(pool.collect(pool.play(0, [spec(0)]), SOON)) == []


def test_the_least_busy_worker_is_the_one_with_the_fewest_groups() -> None:
    pool = make_pool(FakeWorker(), FakeWorker(), num_workers=2)
    pool.play(0, [spec(0), spec(1)])
    pool.play(1, [spec(2)])
    assert pool.least_busy() == 1


def test_after_the_learners_death_groups_are_dropped_and_idle_workers_that_died_are_replaced() -> None:
    """A node that is lost with a rank of the learner takes an engine that may have nothing to play."""

    class Lost(FakeWorker):
        def call(self, method: Callable[..., Any], *args: Any) -> FakePending:
            if method is RolloutWorker.wait_until_ready:
                return FakePending(lambda: self._alive(None))
            return super().call(method, *args)

    busy, idle, fresh = FakeWorker([0]), Lost(), [FakeWorker(), FakeWorker()]
    pool = make_pool(busy, idle, *fresh, num_workers=2)
    pool.load_weights(WeightSource(3, "", "hash"))
    pool.wait_until_loaded()
    pool.play(0, [spec(0), spec(1)])
    idle.is_dead = True
    pool.drop_plays()
    assert busy.is_stopped and idle.is_stopped
    assert [worker.calls for worker in fresh] == [[], []]  # what is dropped is not played again
    assert [worker.sources for worker in fresh] == [[], []]  # the published weights are lost with the learner
    assert len([note for note in pool.notes() if "died and is replaced" in note]) == 2
    pool.load_weights(WeightSource(2, "", "hash", epoch=1))
    pool.wait_until_loaded()
    assert masked(pool.collect(pool.play(0, [spec(0)]), SOON)) == []
    assert [worker.sources for worker in fresh] == [[2], [2]]
