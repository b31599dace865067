"""A run whose curriculum follows its own pass rates: what is drawn after it was killed, with and without engines."""

import json
import signal
from pathlib import Path
from typing import Any, cast

import psutil
import pytest

from rl.config.environments import EnvironmentConfig
from rl.data_types import Group
from rl.runs.checkpoint import latest_checkpoint
from rl.runs.spool import Spool
from rl.saving import checkpoint
from rl.tasks.ledger import Ledger
from rl.tasks.stream import TaskStream
from rl.train import run_loop
from tests.fake_parts import lines, making
from tests.makers import ARITHMETIC, group_of, make_config, make_group, make_rollout
from tests.test_curriculum import LEVELS, measured
from tests.test_train import interrupted, killed, run, state_of, steps, without_time, yaml

__all__ = ["killed", "yaml"]  # fixtures

CURRICULUM = {"option_sets": [{"level": 1}, {"level": 2}, {"level": 4}], "measured": {"solved_tries": 3}}
MORE = (
    f"environments.math/Arithmetic-v0.curriculum={json.dumps(CURRICULUM)}",
    "environments.tools/Store-v0.curriculum={num_tasks: 3, measured: {}}",
    "train.checkpoint_every=2",
)


class Run:
    """A run without engines: a step draws, plays and trains; a group's rewards depend on its task and its step."""

    def __init__(self, saved: Any = None, num_ahead: int = 0) -> None:
        state = json.loads(saved) if saved else {"ledger": Ledger().state(), "curricula": {}, "step": 0}
        config = measured({"option_sets": LEVELS}, solved_tries=4, plateau_steps=2)
        environments = {"a": EnvironmentConfig(curriculum=config), "b": EnvironmentConfig()}
        self.stream = TaskStream(environments, 7, 4, state["curricula"])
        self.ledger, self.step, self.flying = Ledger.from_state(state["ledger"]), state["step"], list[Any]()
        self.num_ahead = num_ahead

    def train(self) -> list[Any]:
        """The tasks that a step trains, of 4 groups; `num_ahead` more are in flight meanwhile."""
        while len(self.flying) < 4 + self.num_ahead:
            self.flying.append(self.stream.start(self.ledger.start()))
        self.flying, tasks = self.flying[4:], self.flying[:4]
        self.step += 1
        groups: list[Group] = []
        for task in tasks:
            easy = task.options.get("level", 1) <= self.step / 2
            group = make_group((1.0, float(easy or task.seed % 2)), task.ordinal, task.env_id)
            self.ledger.play([task.ordinal])
            self.ledger.finish(task.ordinal, masked=False)
            groups.append(group)
        self.stream.finish(self.step, groups, {group.group_id for group in groups})
        return tasks

    def saved(self) -> str:
        return json.dumps({"ledger": self.ledger.state(), "curricula": self.stream.state(), "step": self.step})


@pytest.mark.parametrize("num_ahead", [0, 6])
def test_a_run_that_was_killed_and_resumed_draws_what_an_undisturbed_one_does(num_ahead: int) -> None:
    """Also for the groups that were in flight at the checkpoint: they keep what was drawn for them."""
    undisturbed = Run(num_ahead=num_ahead)
    drawn = [undisturbed.train() for _ in range(12)]
    assert len({task.options.get("level") for tasks in drawn for task in tasks}) == 5
    for step in range(1, 12):
        run = Run(num_ahead=num_ahead)
        for _ in range(step):
            run.train()
        saved, flying = run.saved(), list(run.flying)
        run.train()  # is lost
        again = Run(saved, num_ahead)
        assert [again.stream.task(task.ordinal) for task in flying] == flying
        assert [again.train() for _ in range(12 - step)] == drawn[step:]
        assert again.saved() == undisturbed.saved()


def test_a_group_that_the_spool_keeps_has_the_task_with_which_it_was_started(tmp_path: Path) -> None:
    environments = {ARITHMETIC: EnvironmentConfig(curriculum=measured({"option_sets": LEVELS}))}
    config = make_config(train={"num_steps": 4, "num_prompts": 4, "max_staleness": 2}).train
    before, again, without = (TaskStream(environments, 0, 4) for _ in range(3))
    spool, tasks = Spool(tmp_path, config), [before.start(ordinal) for ordinal in range(8)]
    for task in tasks:
        file = spool.file(task)
        assert file is not None
        file.write(group_of(make_rollout(1.0, task=task), make_rollout(0.0, task=task, member=1)))
    assert Spool(tmp_path, config).take_over(0, Ledger(), again) == "finished groups that are not played again: 8"
    for stream in (again, without):
        played = [stream.start(ordinal) for ordinal in range(4)]
        assert played == tasks[:4]
        groups = [group_of(make_rollout(float(task.options["level"] < 4), task=task)) for task in played]
        stream.finish(1, groups, {group.group_id for group in groups})
    assert [again.start(ordinal) for ordinal in range(4, 8)] == tasks[4:]
    assert [without.start(ordinal) for ordinal in range(4, 8)] != tasks[4:]


def test_a_run_writes_what_its_curriculum_measures_and_its_checkpoint_holds_it(tmp_path: Path) -> None:
    config = {"num_tasks": 1, "measured": {"solved_tries": 2}}
    with making(tmp_path) as make:
        parts = make(environment={"curriculum": config})
        cast(Any, parts.collector).rewards = [(1.0, 1.0)]
        run_loop(parts)
        checkpoint(parts)
        written = [
            {name: line[name] for name in line if name.startswith("curriculum")} for line in lines(parts, "train")
        ]
        key = f"curriculum/{ARITHMETIC}"
        assert written[0] == {f"{key}/unknown": 1.0, f"{key}/solved": 1}
        assert written[1] == written[2] == {f"{key}/pass_rate": 1.0, f"{key}/unknown": 0.0, f"{key}/solved": 1}
        assert any("all of it is solved" in line["text"] for line in lines(parts, "note"))
        saved = latest_checkpoint(parts.folder.checkpoints)
        assert saved is not None
        state = saved.state["curricula"][ARITHMETIC]
        assert (state["known"], state["started"]) == ([[1.0, 6, 3]], {})


def drawn(run_dir: Path) -> list[Any]:
    """The task of each rollout that was trained."""
    files = sorted((run_dir / "rollouts").glob("train_*.jsonl"))
    return [json.loads(line)["task"] for path in files for line in path.read_text().splitlines()]


def saved_by(run_dir: Path) -> Any:
    checkpoint = latest_checkpoint(run_dir / "checkpoints")
    assert checkpoint is not None
    return checkpoint.state["curricula"]


@pytest.mark.slow
def test_a_run_that_follows_its_pass_rates_is_resumed_bit_for_bit_and_its_rollouts_can_be_trained_on(
    yaml: Path, killed: list[psutil.Process], tmp_path: Path
) -> None:
    undisturbed, broken, again = tmp_path / "undisturbed", tmp_path / "broken", tmp_path / "again"
    run(yaml, undisturbed, *MORE)
    code, family = interrupted(yaml, broken, signal.SIGKILL, lambda: len(steps(broken)) >= 3, *MORE)
    killed += family
    assert code == -signal.SIGKILL
    run(yaml, broken, *MORE, "--resume")
    assert drawn(broken) == drawn(undisturbed) and len(drawn(broken)) == 24
    assert state_of(broken) == state_of(undisturbed)
    assert saved_by(broken) == saved_by(undisturbed)
    assert without_time(steps(broken)) == without_time(steps(undisturbed))
    assert any("curriculum/math/Arithmetic-v0/share/level_4" in line for line in steps(broken))
    run(yaml, again, *MORE, "--rollouts-from", str(undisturbed))
    assert {**state_of(again), "ledger": ""} == {**state_of(undisturbed), "ledger": ""}
