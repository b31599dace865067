"""Commands that start warm: the same output, exit codes, signals and families as those that start by themselves."""

import os
import signal
import subprocess
import sys
import time
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


def test_a_signal_reaches_the_process_and_is_its_exit_code(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-m", "rl", "serve", str(tmp_path)], stderr=subprocess.DEVNULL)
    process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=60) == -signal.SIGKILL
    assert process.poll() == -signal.SIGKILL


def test_what_the_command_leaves_ends_with_it() -> None:
    with subprocess.Popen([*EXPLAIN, "train"], stdout=subprocess.PIPE, process_group=0) as process:
        family = psutil.Process(process.pid).children(recursive=True)
        process.communicate(timeout=60)
    deadline = time.monotonic() + 10
    while any(one.is_running() for one in family) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(one.is_running() for one in family)


def test_which_commands_start_warm() -> None:
    def is_warm(*command: str) -> bool:
        return is_command([sys.executable, *command], WARM)

    assert is_warm("-m", "rl", "train") and is_warm("-m", "benchmarks.learner")
    assert not is_warm("-m", "benchmarks.chaos") and not is_warm("-c", "rl") and not is_warm("-m", "rl2")
    assert not is_command(["bash", "-m", "rl"], WARM) and not is_command(f"{sys.executable} -m rl", WARM)
    assert all(is_command([sys.executable, "-m", name], COLD) for name in COLD)
