"""Which level runs code here, and who may ask for a weaker one."""

import contextlib
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner

from envs.__main__ import app
from envs.sandbox import (
    LEVEL_VARIABLE,
    LEVELS,
    Level,
    SandboxError,
    jail,
    level_here,
    minimum_level,
    require_level,
    run_function,
    run_program,
)


@pytest.fixture
def broken_isolation(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A machine on which jails of level `isolated` cannot be made."""
    monkeypatch.setenv(LEVEL_VARIABLE, "restricted")
    make = jail.Jail.__init__

    def refuse(self: jail.Jail, level: Level, *arguments: Any) -> None:
        if level == "isolated":
            raise SandboxError("no jail of level isolated could be made: no namespaces")
        make(self, level, *arguments)

    monkeypatch.setattr(jail.Jail, "__init__", refuse)
    level_here.cache_clear()
    yield
    level_here.cache_clear()


def test_a_weaker_level_is_taken_only_where_it_is_allowed_and_told(broken_isolation: None) -> None:
    assert run_program("print(1)").level == "restricted"
    require_level("isolated")
    with pytest.raises(SandboxError, match=r"no sandbox of level isolated or above[^~]*no namespaces"):
        run_program("print(1)")


def test_processes_that_are_started_later_have_the_required_level_too(broken_isolation: None) -> None:
    ask = "from envs.sandbox import minimum_level; print(minimum_level())"
    for level in LEVELS:
        require_level(level)
        assert subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True).stdout == f"{level}\n"


def test_the_variable_says_the_least_level_and_a_call_wins(
    broken_isolation: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LEVEL_VARIABLE, "isolated")
    with pytest.raises(SandboxError, match="no sandbox of level isolated or above"):
        run_program("print(1)")
    require_level("process")
    assert run_program("print(1)").level == "restricted"


def test_a_variable_that_names_no_level_runs_nothing(broken_isolation: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LEVEL_VARIABLE, "strict")
    with pytest.raises(
        SandboxError, match=r"POLYGYM_SANDBOX_LEVEL must be one of process, restricted, isolated.*strict"
    ):
        run_program("print(1)")


@pytest.mark.parametrize(("level", "error"), [("isolated", ""), ("strict", "POLYGYM_SANDBOX_LEVEL")])
def test_the_commands_take_the_level_as_an_option_or_from_the_variable(
    level: str, error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LEVEL_VARIABLE, level)
    listed = CliRunner().invoke(app, ["list"])
    assert (listed.exit_code, error in listed.output) == (2 if error else 0, True)
    chosen = CliRunner().invoke(app, ["--sandbox-level", "restricted", "list"])
    assert (chosen.exit_code, minimum_level()) == (0, "restricted")
    level_here.cache_clear()


@pytest.mark.skipif(level_here() == "process", reason="code may send signals there")
def test_code_that_is_killed_from_outside_has_no_result_that_could_be_scored() -> None:
    """It was the kernel, out of memory, or somebody else."""
    with ThreadPoolExecutor() as threads:
        running = threads.submit(run_function, "def f(x):\n    while True: pass", "f", [[1]])
        while (jailed := busy_jailed_process()) is None:
            time.sleep(0.01)
        jailed.kill()
        with pytest.raises(SandboxError, match="killed from outside"):
            running.result()


def busy_jailed_process() -> psutil.Process | None:
    """A child of a supervisor, which is a child of a process that jails are forked from, that runs code."""
    with contextlib.suppress(psutil.Error):  # others end meanwhile
        for zygote in psutil.Process().children():
            for supervisor in zygote.children() if any("zygote.py" in part for part in zygote.cmdline()) else ():
                for jailed in supervisor.children():
                    if jailed.cpu_times().user > 0.1:
                        return jailed
    return None
