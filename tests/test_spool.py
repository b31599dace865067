"""Groups that were played outlive a crash: none is trained twice, too late, or with tokens of weights that are lost."""

import dataclasses
import logging
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs.messages import Message, ToolCall
from rl.cluster.actors import Deadline
from rl.config.experiment import ExperimentConfig
from rl.data_types import Group, Turn
from rl.rollouts.collector import Collector
from rl.rollouts.worker import GroupSpec
from rl.runs.spool import Spool, SpoolFile
from rl.tasks.ledger import Ledger
from rl.tasks.stream import TaskStream
from rl.tokens import Tokens
from tests.makers import group_of, make_config, make_rollout, make_turn

NUM_PROMPTS, GROUP_SIZE = 2, 2


def config_of(max_staleness: int) -> ExperimentConfig:
    sizes = {"num_steps": 9, "num_prompts": NUM_PROMPTS, "group_size": GROUP_SIZE}
    return make_config(train={**sizes, "max_staleness": max_staleness})


CONFIG = config_of(2)
STREAM = TaskStream(CONFIG.environments, 0, NUM_PROMPTS)


def spool_of(folder: Path, max_staleness: int = 2) -> Spool:
    return Spool(folder, config_of(max_staleness).train)


def file_of(spool: Spool, ordinal: int) -> SpoolFile:
    file = spool.file(STREAM.task(ordinal))
    assert file is not None
    return file


def group(ordinal: int, *versions: int) -> Group:
    """A group with a rollout for each version that sampled its tokens."""
    task = STREAM.task(ordinal)
    rollouts = [
        make_rollout(task=task, member=member, turns=(make_turn(version=version),))
        for member, version in enumerate(versions)
    ]
    return group_of(*rollouts)


def keep(spool: Spool, ordinal: int, *versions: int) -> Path:
    file = file_of(spool, ordinal)
    file.write(group(ordinal, *versions))
    return file.path


def ledger_at(num_started: int, in_flight: Sequence[int]) -> Ledger:
    return Ledger.from_state({"num_started": num_started, "in_flight": list(in_flight), "played": [], "masked": []})


def taken_over(folder: Path, step: int, ledger: Ledger) -> tuple[Spool, list[int], str]:
    """The next attempt, the ordinals that it goes on with, and what it says."""
    spool = spool_of(folder)
    said = spool.take_over(step, ledger, STREAM)
    kept = [ordinal for ordinal in range(20) if file_of(spool, ordinal).read()]
    return spool, kept, said


def test_a_group_comes_back_as_it_was(tmp_path: Path) -> None:
    task = dataclasses.replace(STREAM.task(3), options={"names": ("a", "b"), 1: 0.1})
    columns: dict[str, Any] = {
        "logprob": np.array([-0.1, -1e-30, -np.pi], np.float32),
        "version": np.array([4, 5, 5], np.int32),
        "routed_experts": np.arange(12, dtype=np.uint8).reshape(3, 2, 2),
        "teacher_logprob": np.array([-1.5, np.nan, -np.inf], np.float16),
    }
    routes = {"routed_experts": np.array([[[9, 1], [0, 7]]] * 2, np.uint16)}
    turns = (
        Turn(
            Tokens.unsampled([1, 2], routes),
            Tokens.make([7, 8, 9], [True, False, True], columns),
            "stop",
            is_start=True,
        ),
        make_turn([], [10, 11], forced=[1], is_start=False),
    )
    messages = (Message("user", "half a \ud800 and \u2028\x85\n"), Message("assistant", "", "why", (ToolCall("f"),)))
    rollouts = [
        make_rollout(1 / 3, "budget_hit", task=task, turns=turns, messages=messages, malformed_calls={"form": 2}),
        make_rollout(0.1 + 0.2, "truncated", task=task, member=1, num_attempts=2, budget_violation="too long"),
        make_rollout(-0.0, "invalid_action", task=task, member=2, reward_parts={"a": 1e-9, "b": 3}, seconds=0.1),
    ]
    file = SpoolFile(tmp_path / "00000003.jsonl", task)
    assert file.read() is None
    file.write(group_of(*rollouts))
    back = file.read()
    assert back is not None and back.task is task and back.group_id == "0-3"
    for one, other in zip(back.rollouts, rollouts, strict=True):
        assert dataclasses.replace(one, turns=()) == dataclasses.replace(other, turns=())
        for turn, was in zip(one.turns, other.turns, strict=True):
            assert (turn.finish, turn.is_start, turn.prompt) == (was.finish, was.is_start, was.prompt)
            for name, column in {"ids": was.reply.ids, "sampled": was.reply.sampled, **was.reply.columns}.items():
                read = {"ids": turn.reply.ids, "sampled": turn.reply.sampled, **turn.reply.columns}[name]
                assert (read.dtype, read.shape, read.tobytes()) == (column.dtype, column.shape, column.tobytes())


def test_a_group_with_a_rollout_that_does_not_count_is_not_kept(tmp_path: Path) -> None:
    file = file_of(spool_of(tmp_path), 0)
    file.write(group_of(make_rollout(1.0), make_rollout(None, "infra_error")))
    assert file.read() is None


def test_a_group_that_cannot_be_written_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        SpoolFile(tmp_path / "gone" / "00000000.jsonl", STREAM.task(0)).write(group(0, 1))
    assert "group 0-0 would have to be played again after a crash" in caplog.text


@pytest.mark.parametrize(
    ("ordinal", "versions", "reason"),
    [
        # The checkpoint is of step 4: tasks 0 to 7 were trained, 8 to 11 are in flight, 12 was not started.
        (8, (2, 4), None),  # trained next, by version 4
        (10, (3, 3), None),  # trained by version 5
        (12, (4, 4), None),  # started after the checkpoint was written, by the same weights
        (7, (4, 4), "trained or masked before"),
        (8, (4, 5), "sampled by lost versions"),
        (11, (5, 3), "sampled by lost versions"),
        (8, (1, 4), "too old"),  # 4 - 1 > 2
        (10, (2, 4), "too old"),  # 5 - 2 > 2
    ],
)
def test_which_groups_a_run_goes_on_with(
    ordinal: int, versions: Sequence[int], reason: str | None, tmp_path: Path
) -> None:
    path = keep(spool_of(tmp_path), ordinal, *versions)
    _, kept, said = taken_over(tmp_path, 4, ledger_at(12, [8, 9, 10, 11]))
    assert not path.exists()
    assert kept == ([ordinal] if reason is None else [])
    told = "1" if reason is None else f"0; dropped 1 {reason}"
    assert said == f"finished groups that are not played again: {told}"


def test_damaged_files_and_those_of_other_tasks_are_dropped_and_told(tmp_path: Path) -> None:
    spool = spool_of(tmp_path)
    paths = [keep(spool, ordinal, 0) for ordinal in range(5)]
    paths[0].write_bytes(paths[0].read_bytes()[:-20])
    paths[1].write_bytes(b"\xff" + paths[1].read_bytes())
    paths[2].write_text("")
    other = dataclasses.replace(STREAM.task(3), seed=1)
    SpoolFile(paths[3], other).write(group_of(make_rollout(task=other)))
    paths[4].with_name(".00000004.jsonl.tmp").write_text("half")
    _, kept, said = taken_over(tmp_path, 0, ledger_at(0, []))
    assert kept == [4]
    assert said.endswith("again: 1; dropped 3 damaged; dropped 1 of a task that has changed; dropped 1 unfinished")


def test_a_process_of_a_lost_attempt_finds_no_folder_to_write_to(tmp_path: Path) -> None:
    first = spool_of(tmp_path)
    keep(first, 1, 0)
    orphan = file_of(first, 2)
    spool, kept, _ = taken_over(tmp_path, 0, ledger_at(4, [0, 1, 2, 3]))
    assert kept == [1]
    orphan.write(group(2, 0))
    assert file_of(spool, 2).read() is None
    assert taken_over(tmp_path, 0, ledger_at(4, [0, 1, 2, 3]))[1] == [1]


def test_a_start_without_anything_kept_says_nothing(tmp_path: Path) -> None:
    assert taken_over(tmp_path, 0, ledger_at(0, []))[1:] == ([], "")


def test_a_synchronous_run_keeps_nothing(tmp_path: Path) -> None:
    assert spool_of(tmp_path / "spool", max_staleness=0).file(STREAM.task(0)) is None
    assert not (tmp_path / "spool").exists()


def test_groups_are_removed_when_no_start_can_use_them(tmp_path: Path) -> None:
    spool = spool_of(tmp_path)
    paths = [keep(spool, ordinal, 4, version) for ordinal, version in enumerate((4, 5, 4))]
    spool.trained([group(0, 4, 4), group(1, 4, 5)], saved_step=4)
    assert [path.exists() for path in paths] == [True, False, True]
    spool.saved(ledger_at(3, [2]))
    assert [path.exists() for path in paths] == [False, False, True]
    spool.clear()
    file_of(spool, 1)
    assert list(tmp_path.glob("*/*")) == []


@dataclasses.dataclass(eq=False)
class Playing:
    spec: GroupSpec
    sampled: list[tuple[int, int]]
    """The version of each token, and the weights that it was."""
    num_groups: int = 1


class Engines:
    """Sample a token a tick for each group, with the weights served then; a token's logprob names these weights."""

    num_workers = 1

    def __init__(self, rng: random.Random, weights: Sequence[int]) -> None:
        self.rng, self.weights = rng, weights
        self.played: list[int] = []
        self.num_collected = 0
        self.playing: list[Playing] = []

    def least_busy(self) -> int:
        return 0

    def wait_until_loaded(self) -> None:
        """They load at once."""

    def play(self, worker: int, specs: Sequence[GroupSpec]) -> Playing:
        (spec,) = specs
        self.played.append(spec.task.ordinal)
        self.playing.append(Playing(spec, []))
        return self.playing[-1]

    def tick(self) -> None:
        for play in self.playing:
            if not play.spec.kept():
                self.sample(play)
                if self.rng.random() < 0.3:
                    self.end(play)

    def sample(self, play: Playing) -> None:
        play.sampled.append((len(self.weights) - 1, self.weights[-1]))

    def end(self, play: Playing) -> Group:
        group = ended(play.spec, play.sampled)
        assert play.spec.keeper is not None
        play.spec.keeper.write(group)
        return group

    def collect(self, play: Playing, deadline: Deadline) -> list[Group]:
        self.playing.remove(play)
        self.num_collected += 1
        if kept := play.spec.kept():
            return [kept]
        self.sample(play)
        return [self.end(play)]


def ended(spec: GroupSpec, sampled: Sequence[tuple[int, int]]) -> Group:
    versions, weights = zip(*sampled, strict=True)
    reply = Tokens.make(range(len(sampled)), [True] * len(sampled), {"logprob": weights, "version": versions})
    turns = (Turn(Tokens.unsampled([1]), reply, "stop", is_start=True),)
    return Group(spec.group_id, spec.task, (make_rollout(task=spec.task, turns=turns),))


def replies(groups: Sequence[Group]) -> list[Tokens]:
    return [turn.reply for group in groups for rollout in group.rollouts for turn in rollout.turns]


@pytest.mark.parametrize("max_staleness", [1, 2, 4])
def test_killed_at_random_points_a_run_trains_each_task_once_with_tokens_of_its_own_weights(
    max_staleness: int, tmp_path: Path
) -> None:
    """An orphan of each lost attempt plays on beside the next, and a checkpoint may be older than several kills."""
    config, rng = config_of(max_staleness), random.Random(max_staleness)
    saved: Any = (Ledger().state(), [], [0])
    num_kept, num_weights, orphans = 0, 0, list[Engines]()
    while len(saved[1]) < 30 * NUM_PROMPTS:
        ledger, trained, weights = Ledger.from_state(saved[0]), list(saved[1]), list(saved[2])
        saved_step = len(weights) - 1
        spool, engines = Spool(tmp_path, config.train), Engines(rng, weights)
        spool.take_over(saved_step, ledger, STREAM)
        collector = Collector(config, engines, STREAM, ledger, spool.file)  # pyright: ignore[reportArgumentType]
        for _ in range(rng.randrange(12)):
            groups = collector.collect()
            for reply in replies(groups):
                versions = reply.columns["version"].tolist()
                assert max(versions) < len(weights) and len(weights) - 1 - min(versions) <= max_staleness
                assert reply.columns["logprob"].tolist() == [weights[version] for version in versions]
            for playing in (engines, *orphans):
                playing.tick()
            num_weights += 1
            num_kept += len(groups)
            weights.append(num_weights)
            for group in groups:
                ledger.finish(group.task.ordinal, masked=False)
                trained.append(group.task.ordinal)
            spool.trained(groups, saved_step)
            if rng.random() < 0.3:
                saved, saved_step = (ledger.state(), list(trained), list(weights)), len(weights) - 1
                if rng.random() < 0.2:
                    break  # killed before it could remove what the checkpoint counts
                spool.saved(ledger)
            assert len(list(tmp_path.glob("*/*"))) <= 2 * NUM_PROMPTS * (1 + max_staleness)
        num_kept -= engines.num_collected
        orphans = [engines]
    assert saved[1] == list(range(len(saved[1])))
    assert num_kept >= 10


def test_kept_groups_are_handed_over_in_start_order_between_those_that_are_played(tmp_path: Path) -> None:
    spool = spool_of(tmp_path)
    for ordinal in (1, 2, 5):
        keep(spool, ordinal, 0)
    spool, _, _ = taken_over(tmp_path, 0, ledger := ledger_at(4, [0, 1, 2, 3]))
    engines = Engines(random.Random(0), [0])
    collector = Collector(CONFIG, engines, STREAM, ledger, spool.file)  # pyright: ignore[reportArgumentType]
    assert [group.task.ordinal for group in collector.collect()] == [0, 1]
    assert engines.played == [0, 3, 4]
    assert ledger.state()["played"] == [0, 1, 2, 5]
    assert [group.task.ordinal for group in collector.collect()] == [2, 3]
