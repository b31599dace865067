"""What is found before a run starts: environments that cannot open a task, hang, or declare something wrong."""

import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from envs.messages import Message, Reply
from envs.session import EnvFailure
from envs.text_env import TextEnv
from rl.config.environments import environment_fix
from rl.config.errors import ConfigError
from rl.config.read import load_config
from rl.preflight import preflight
from rl.rollouts.worker import RolloutWorker

YAML = """
run_dir: {folder}/run
seed: 0
policy: {{path: {folder}}}
train: {{num_steps: 1}}
rollout: {{reset_timeout_s: 0.5}}
environments:
  tests.test_preflight:{name}:
    options: {{level: hard}}
"""


class Opens(TextEnv):
    """Opens any task. Counts what is made and closed."""

    OPTIONS = {"level": 1}
    num_made = num_closed = 0

    def __init__(self) -> None:
        super().__init__()
        type(self).num_made += 1

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return (Message("user", "?"),), {}

    def step(self, action: Reply) -> Any:
        return (), 1.0, True, False, {}

    def close(self) -> None:
        type(self).num_closed += 1


class CannotReadItsOption(Opens):
    num_made = num_closed = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        int(options["level"])


class Hangs(Opens):
    num_made = num_closed = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        time.sleep(30)


class ReadsItsData(Opens):
    data = ""

    @classmethod
    def load_data(cls, options: Mapping[str, Any]) -> None:
        time.sleep(0.6)  # longer than the deadline of a reset
        cls.data = options["level"]

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        if self.data != options["level"]:
            time.sleep(30)
        return (Message("user", self.data),), {}


class HangsWhenItIsMade(Opens):
    is_free = threading.Event()
    num_made = num_closed = 0

    def __init__(self) -> None:
        self.is_free.wait(30)
        super().__init__()


class NoTurns(Opens):
    max_turns = None  # pyright: ignore[reportAssignmentType]


class NoTurnsOnceOpen(Opens):
    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.max_turns = self.read_options(options)[1]["level"]  # pyright: ignore[reportAttributeAccessIssue]
        return (Message("user", "?"),), {}


class SaysNothingReadable(Opens):
    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return "a text", {}


class PaysLessThanNothing(Opens):
    reward_range = (-13.0, 0.0)


def problems(folder: Path, name: str) -> str:
    """What pre-flight says about an experiment with this environment of the module."""
    (folder / "config.json").write_text("{}")
    path = folder / "experiment.yaml"
    path.write_text(YAML.format(folder=folder, name=name))
    with pytest.raises(ConfigError) as caught:
        preflight(load_config(path))
    assert caught.value.problems
    assert all(problem.where.startswith(f"{path}, line ") and problem.fix for problem in caught.value.problems)
    return str(caught.value)


def test_an_environment_that_opens_passes_and_is_closed(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    path = tmp_path / "experiment.yaml"
    path.write_text(YAML.format(folder=tmp_path, name="Opens"))
    preflight(load_config(path))
    assert Opens.num_made == Opens.num_closed > 0


def test_a_shaping_that_multiplies_negative_rewards_is_told_with_its_place(tmp_path: Path) -> None:
    shaping = "[length, {shaping: effort, weight: 0.5}]"
    told = problems(tmp_path, f"PaysLessThanNothing:\n    shaping: {shaping}\n    #")
    assert "line 9: environments.tests.test_preflight:PaysLessThanNothing.shaping.1: it multiplies rewards, and" in told
    assert "go down to -13" in told and "fix: remove it, or use a shaping that subtracts" in told


@pytest.mark.slow
def test_data_is_read_before_the_deadline_of_the_first_reset(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    path = tmp_path / "experiment.yaml"
    path.write_text(YAML.format(folder=tmp_path, name="ReadsItsData"))
    preflight(load_config(path))
    assert ReadsItsData.data == "hard"


def test_a_worker_reads_the_data_of_its_environments_when_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rl.engine.vllm_core", SimpleNamespace(VllmEngine=lambda *given: None))  # type: ignore[arg-type]
    monkeypatch.setattr("rl.chat.chat.load_chat", lambda *given: None)
    for name in ("join_run_log", "Notes"):
        monkeypatch.setattr(f"rl.rollouts.worker.{name}", lambda *given: None)
    read = []
    monkeypatch.setattr(Opens, "load_data", lambda options: read.append(options))
    path = tmp_path / "experiment.yaml"
    path.write_text(YAML.format(folder=tmp_path, name="Opens"))
    RolloutWorker(load_config(path), tmp_path)
    assert read == [{"level": "hard"}]


def test_nobody_is_told_to_change_the_code_of_a_built_in_environment() -> None:
    slow, broken = EnvFailure("x", "too slow", timed_out=True), EnvFailure("x", "broken")
    assert environment_fix("math/GradeSchool-v0", slow) == "raise rollout.reset_timeout_s, or end other programs"
    assert environment_fix("math/GradeSchool-v0", broken).startswith("find the cause with: python -m envs check math/G")
    assert "read data in load_data" in environment_fix("prices:prices", slow)
    assert environment_fix("prices:prices", broken).startswith("fix the package that provides it")


def test_a_reset_that_raises_names_the_option_and_the_line_and_is_closed(tmp_path: Path) -> None:
    told = problems(tmp_path, "CannotReadItsOption")
    assert "2 problems" in told  # of either split
    assert "experiment.yaml, line 9: environments.tests.test_preflight:CannotReadItsOption.options" in told
    assert "cannot open a train task" in told and "cannot open a heldout task" in told
    assert "reset raised ValueError: invalid literal for int()" in told
    assert "with the option level='hard' (default 1)" in told
    assert CannotReadItsOption.num_made == CannotReadItsOption.num_closed > 0


@pytest.mark.slow
def test_a_reset_that_hangs_is_a_problem_with_its_deadline_and_is_closed(tmp_path: Path) -> None:
    told = problems(tmp_path, "Hangs")
    assert "reset took longer than 0.5 s" in told and "raise rollout.reset_timeout_s" in told
    assert Hangs.num_made == Hangs.num_closed > 0


def test_a_constructor_that_hangs_is_a_problem_and_what_it_makes_is_closed(tmp_path: Path) -> None:
    assert "making it took longer than 0.5 s" in problems(tmp_path, "HangsWhenItIsMade")
    HangsWhenItIsMade.is_free.set()
    deadline = time.monotonic() + 10
    while not HangsWhenItIsMade.num_closed and time.monotonic() < deadline:
        time.sleep(0.01)
    assert HangsWhenItIsMade.num_made == HangsWhenItIsMade.num_closed > 0


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("NoTurns", "max_turns must be a whole number of at least 1, got None"),
        ("NoTurnsOnceOpen", "max_turns must be a whole number of at least 1, got 'hard'"),
        ("SaysNothingReadable", "messages must be a tuple of envs.messages.Message, got 'a text'"),
    ],
)
def test_what_breaks_the_contract_is_named(name: str, wrong: str, tmp_path: Path) -> None:
    assert wrong in problems(tmp_path, name)
