"""What code that a policy wrote may do: return values. Everything else ends typed, and none of it scores."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from envs import sandbox
from envs.functions import Functions
from envs.messages import Reply
from envs.sandbox import Limits, SandboxError, SandboxResult, run_function

INPUTS = [[number] for number in range(4)]
QUICK = Limits(cpu_s=1, wall_s=1.0)
PATIENT = Limits(cpu_s=20, wall_s=60.0)
"""For code that ends by itself or at another limit, however busy the machine is."""


def run(code: str, limits: Limits = PATIENT) -> SandboxResult:
    return run_function(code, "f", INPUTS, limits)


def test_values_come_back_in_order_with_their_types() -> None:
    assert run("def f(x):\n    return [x, x / 1, x == 1, None, str(x), {'k': x}]").values[1] == [
        1,
        1.0,
        True,
        None,
        "1",
        {"k": 1},
    ]
    assert run("def f(x): return x * x") == SandboxResult("ok", (0, 1, 4, 9))


def test_every_input_is_a_fresh_copy() -> None:
    code = "def f(x):\n    x.append(1)\n    return x"
    shared = [5]
    assert run_function(code, "f", [[shared], [shared]]).values == ([5, 1], [5, 1])
    assert shared == [5]


def test_the_usual_modules_can_be_imported() -> None:
    code = (
        "import math, itertools, functools, collections, re, random, statistics\ndef f(x): return math.floor(x + 0.5)"
    )
    assert run(code).values == (0, 1, 2, 3)


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("def f(x):\n    while True: pass", "timeout"),
        ("while True: pass", "timeout"),
        ("import time\ndef f(x): time.sleep(100)", "timeout"),
        ("def f(x): return len([0] * 10**10)", "memory"),
        ("def f(x):\n    a = []\n    while True: a.append('x' * 10**6)", "memory"),
        ("def f(x):\n    while True: print('x' * 1000)", "output_limit"),
        ("def f(x): return 'x' * 10**6", "output_limit"),
        ("import os\ndef f(x):\n    while True: os.fork()", "error"),
        ("import threading\ndef f(x):\n    threading.Thread(target=print).start()\n    return 1", "error"),
        ("import sys\ndef f(x): sys.exit(0)", "error"),
        ("import os\ndef f(x): os._exit(0)", "error"),
        ("import os\ndef f(x): os.kill(os.getppid(), 9)", "error"),
        ("import os\ndef f(x): os.system('true'); return 1", "error"),
        ("def f(x): return open('/etc/hostname').read()", "error"),
        ("def f(x): open('/tmp/planted', 'w'); return 1", "error"),
        ("import socket\ndef f(x): return 1", "error"),
        ("import ctypes\ndef f(x): return 1", "error"),
        ("def f(x): return f(x)", "error"),
        ("def f(x): return (1, 2)", "error"),
        ("def f(x): return {1: 2}", "error"),
        ("def f(x): return 10**5000", "error"),
        ("import sys\ndef f(x): sys.stdout.close(); return 1", "error"),
        ("def f(x) return x", "error"),
        ("def g(x): return x", "error"),
        ("f = 3", "error"),
        ("", "error"),
        ("\0", "error"),
        ("#" * 10_000, "error"),
    ],
)
def test_whatever_else_code_does_ends_typed_and_without_values(code: str, status: str) -> None:
    result = run(code, QUICK if status == "timeout" else PATIENT)
    assert (result.status, result.values) == (status, ())
    assert result.detail


def test_a_value_that_equals_everything_does_not_leave_the_process() -> None:
    code = "class Any(int):\n    def __eq__(self, other): return True\ndef f(x): return Any(x)"
    result = run(code)
    assert result.status == "error"
    assert "Any" in result.detail


def test_the_code_sees_an_empty_environment_and_no_expected_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hush")
    code = "import os, sys\ndef f(x): return [dict(os.environ), sys.argv, list(sys._getframe(1).f_locals)]"
    environment, arguments, names = run(code).values[0]
    assert "SECRET" not in environment
    assert arguments == ["-c"]
    assert sorted(names) == ["arguments", "function", "job", "names", "values"]


def test_forging_the_results_earns_nothing() -> None:
    env = Functions()
    env.reset(seed=0)
    forged = 'import sys, os\nprint(\'{"status": "ok", "values": "all"}\', flush=True)\nos.abort()'
    assert env.step(Reply(forged))[1] == 0.0
    tampering = "import __main__\n__main__.check_plain = lambda *a: None\ndef f(x): return None"
    assert env.step(Reply(tampering))[4]["reward_parts"]["all"] == 0.0


def test_no_process_is_left_behind() -> None:
    before = children()
    for code in ("import time\ndef f(x): time.sleep(100)", "def f(x):\n    while True: print(x)"):
        run(code, QUICK)
    assert children() == before


def children() -> set[int]:
    """Processes that this one started and that still exist."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid():
            found.add(int(stat.parent.name))
    return found


def test_a_process_that_cannot_start_is_a_failure_of_the_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "sys", SimpleNamespace(executable="/no/such/python"))
    with pytest.raises(SandboxError, match="no process could be started"):
        run("def f(x): return x")


def test_limits_that_cannot_be_set_are_a_failure_of_the_sandbox() -> None:
    with pytest.raises(SandboxError, match="limits cannot be set"):
        run_function("def f(x): return x", "f", INPUTS, Limits(memory_bytes=2**80))


def test_a_slow_machine_is_a_failure_of_the_sandbox_and_no_timeout() -> None:
    with pytest.raises(SandboxError, match="did not get ready"):
        run_function("def f(x): return x", "f", INPUTS, Limits(start_s=0.0))
