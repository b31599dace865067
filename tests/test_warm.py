"""Commands that start warm: the same output, exit codes, signals and families as those that start by themselves."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.warm_commands import COLD, WARM, WarmPopen, is_command, starts_warm

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not starts_warm(), reason="everything starts by itself")]
EXPLAIN = [sys.executable, "-m", "rl", "explain"]


def test_output_exit_codes_and_arguments_are_those_of_a_cold_start(tmp_path: Path) -> None:
    for key, code in (("train.num_steps", 0), ("train.num_stepz", 2)):
        command = [*EXPLAIN, key]
        warm = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
        assert isinstance(warm, WarmPopen)
        environment = {name: value for name, value in os.environ.items() if name != "POLYGYM_WARM"}
        text = f"import runpy, sys; sys.argv = {['rl', *command[3:]]}; runpy.run_module('rl', run_name='__main__')"
        cold = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, env=environment)
        assert warm.communicate(timeout=60) == (cold.stdout, cold.stderr)
        assert warm.returncode == cold.returncode == code


@pytest.fixture
def busy() -> Iterator["subprocess.Popen[bytes]"]:
    """A command that waits: nobody reads what it prints, which is more than a pipe holds."""
    command = [*EXPLAIN, "--markdown"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, pipesize=4096, process_group=0) as process:
        yield process
        process.kill()


def test_a_signal_reaches_the_process_and_is_its_exit_code(busy: "subprocess.Popen[bytes]") -> None:
    assert busy.poll() is None
    busy.send_signal(signal.SIGKILL)
    assert busy.wait(timeout=60) == -signal.SIGKILL
    assert busy.poll() == -signal.SIGKILL


def test_what_the_command_has_started_is_its_family_and_ends_with_it(busy: "subprocess.Popen[bytes]") -> None:
    family: list[psutil.Process] = []
    deadline = time.monotonic() + 60
    while not family and time.monotonic() < deadline:
        family = psutil.Process(busy.pid).children(recursive=True)
    assert family and os.getpgid(busy.pid) == busy.pid
    busy.kill()
    gone, left = psutil.wait_procs(family, timeout=60)
    assert gone and not left


def test_which_commands_start_warm() -> None:
    def is_warm(*command: str) -> bool:
        return is_command([sys.executable, *command], WARM)

    assert is_warm("-m", "rl", "train") and is_warm("-m", "benchmarks.learner")
    assert not is_warm("-m", "benchmarks.chaos") and not is_warm("-c", "rl") and not is_warm("-m", "rl2")
    assert not is_command(["bash", "-m", "rl"], WARM) and not is_command(f"{sys.executable} -m rl", WARM)
    assert all(is_command([sys.executable, "-m", name], COLD) for name in COLD)
