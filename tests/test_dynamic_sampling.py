"""Dynamic sampling: how many groups a step plays, that each task is accounted for once, and what is trained."""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from rl.algorithms.shaping import with_signal
from rl.algorithms.shaping.length import Length
from rl.data_types import Group
from rl.rollouts.admission import Admission
from rl.rollouts.collector import Collector
from rl.rollouts.worker import GroupSpec
from rl.runs.folder import RunFolder
from rl.runs.recording import Recording, read_attempts
from rl.tasks.ledger import Ledger
from rl.tasks.stream import TaskStream
from tests.makers import ARITHMETIC, make_config, make_group, make_turn, make_update
from tests.test_collector import FakePool


class TaughtPool(FakePool):
    """Groups of these ordinals have a signal."""

    def __init__(self, has_signal: Callable[[int], bool]) -> None:
        super().__init__()
        self._has_signal = has_signal

    def group(self, spec: GroupSpec) -> Group:
        group = super().group(spec)
        if not self._has_signal(spec.task.ordinal):
            return group
        return replace(group, rollouts=(replace(group.rollouts[0], reward=0.0), *group.rollouts[1:]))


def steps(
    has_signal: Callable[[int], bool],
    rounds: int,
    max_staleness: int = 0,
    num: int = 3,
    recording: Recording | None = None,
) -> tuple[list[list[int]], Ledger]:
    """The ordinals of each step, all of them finished."""
    train = {
        "num_steps": 9,
        "num_prompts": 4,
        "group_size": 2,
        "max_staleness": max_staleness,
        "max_sampling_rounds": rounds,
    }
    config, ledger = make_config(train=train), Ledger()
    pool = TaughtPool(has_signal)
    stream = TaskStream(config.environments, 0, 4)
    collector = Collector(config, pool, stream, ledger, course=recording)  # pyright: ignore[reportArgumentType]
    played = []
    for version in range(num):
        pool.version = version
        groups = collector.collect()
        if recording is not None:
            recording.collected(version + 1, groups)
            recording.updated(version + 1, make_update(version + 1))
        ordinals = [group.task.ordinal for group in groups]
        assert all(version - pool.started_at[ordinal] <= max_staleness for ordinal in ordinals)
        for ordinal in ordinals:
            ledger.finish(ordinal, masked=False)
        played.append(ordinals)
    return played, ledger


def each_once(played: Sequence[Sequence[int]], ledger: Ledger) -> bool:
    ordinals = [ordinal for step in played for ordinal in step]
    left = ledger.state()["in_flight"]
    return ordinals == list(range(len(ordinals))) and left == list(range(len(ordinals), ledger.state()["num_started"]))


def test_one_round_takes_the_first_groups_whatever_they_are() -> None:
    played, ledger = steps(lambda ordinal: False, rounds=1)
    assert played == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]] and each_once(played, ledger)


def test_a_step_plays_on_until_enough_groups_have_a_signal() -> None:
    played, ledger = steps(lambda ordinal: ordinal % 2 == 0, rounds=5)
    # 2 of 4 have one: 2 are missing, and 4 more at this rate.
    assert played == [[0, 1, 2, 3, 4, 5, 6, 7], list(range(8, 16)), list(range(16, 24))] and each_once(played, ledger)
    played, ledger = steps(lambda ordinal: True, rounds=5)
    assert [len(step) for step in played] == [4, 4, 4] and each_once(played, ledger)


def test_the_rounds_are_bounded() -> None:
    played, ledger = steps(lambda ordinal: False, rounds=3)
    assert [len(step) for step in played] == [12, 12, 12] and each_once(played, ledger)


@pytest.mark.parametrize("rate", [1, 2, 5])
def test_an_asynchronous_step_takes_them_from_those_in_flight(rate: int) -> None:
    played, ledger = steps(lambda ordinal: ordinal % rate == 0, rounds=9, max_staleness=1, num=6)
    assert each_once(played, ledger)
    assert all(4 <= len(step) <= 8 for step in played)
    assert (max(map(len, played)) > 4) == (rate > 1)


@pytest.mark.parametrize(("rounds", "num_played"), [(1, 4), (2, 8), (3, 12), (9, 16)])
def test_groups_of_all_rounds_are_in_flight_although_the_learner_hardly_waits(
    rounds: int, num_played: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    follow = Admission.follow
    monkeypatch.setattr(Admission, "follow", lambda self, waited_s, step_s: follow(self, 0.0, 1.0))
    played, ledger = steps(lambda ordinal: False, rounds, max_staleness=3, num=40)
    assert each_once(played, ledger)
    assert [len(step) for step in played[-4:]] == [num_played] * 4  # at most 16 by the bound on staleness


def test_a_replay_takes_the_same_groups_in_each_round(tmp_path: Path) -> None:
    def played(recording: Recording) -> list[list[int]]:
        with closing(recording):
            recording.begin(make_config(tmp_path), 0, tmp_path / "spool", is_again=False)
            return steps(lambda ordinal: ordinal % 2 == 0, 9, max_staleness=1, num=6, recording=recording)[0]

    recorded = played(Recording(RunFolder(tmp_path)))
    (attempt,) = read_attempts(RunFolder(tmp_path))
    assert max(map(len, recorded)) > 4
    assert played(Recording(RunFolder(tmp_path / "replay"), attempt)) == recorded


def test_a_signal_is_one_after_shaping() -> None:
    equal = make_group([1.0, 1.0])
    rollouts = [
        replace(one, turns=(make_turn(reply_ids=range(10, 12 + member)),)) for member, one in enumerate(equal.rollouts)
    ]
    equal = replace(equal, rollouts=tuple(rollouts))
    assert with_signal([equal, make_group([1.0, 0.0])], {}) == [make_group([1.0, 0.0])]
    assert len(with_signal([equal], {ARITHMETIC: (Length(),)})) == 1
