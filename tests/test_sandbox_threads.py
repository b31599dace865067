"""How many threads code may run in a jail."""

import subprocess
import sys

import pytest

from envs.sandbox import Level, Limits, run_program
from envs.sandbox.probes.code import START_THREADS

PATIENT = Limits(cpu_s=20, wall_s=60.0, memory_bytes=256 * 1024**2)


@pytest.mark.parametrize("level", ["restricted", "isolated"])
def test_threads_of_a_jail_are_bounded_and_ended_ones_make_room(level: Level) -> None:
    bounded = run_program(START_THREADS, limits=PATIENT, level=level)
    assert (bounded.status, 32 <= int(bounded.stdout) < 128) == ("ok", True)
    again = "import threading\nfor _ in range(200):\n    t = threading.Thread(target=int)\n"
    again += "    t.start()\n    t.join()\nprint('all')"
    assert run_program(again, limits=PATIENT, level=level).stdout == "all\n"


@pytest.mark.slow
def test_a_jail_that_starts_threads_over_and_over_loses_the_right() -> None:
    code = "import threading\nfor n in range(20000):\n    t = threading.Thread(target=int); t.start(); t.join()"
    result = run_program(code, limits=PATIENT)
    assert (result.status, result.detail) == ("error", "RuntimeError: can't start new thread")


def test_below_another_listener_no_thread_starts_and_all_else_runs() -> None:
    """Container engines that listen to system calls leave no second listener to us."""
    code = (
        "from envs.sandbox import layers, system_calls, run_program\n"
        "listener = layers.install_filter(system_calls.thread_filter(layers.MACHINE, True), 8)\n"
        "threads = 'import threading\\nthreading.Thread(target=int).start()'\n"
        "print(run_program('print(3)').stdout, run_program(threads).detail)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "3\n RuntimeError: can't start new thread\n", done.stderr
