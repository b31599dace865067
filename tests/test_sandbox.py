"""What code that a policy wrote may do: return values. Everything else ends typed, and none of it scores."""

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from envs.code.functions import Functions
from envs.messages import Reply
from envs.sandbox import (
    LEVELS,
    Level,
    Limits,
    PythonSession,
    SandboxError,
    SandboxResult,
    forking,
    run_function,
    run_program,
    run_tests,
)

INPUTS = [[number] for number in range(4)]
QUICK = Limits(cpu_s=1, wall_s=1.0)
PATIENT = Limits(cpu_s=20, wall_s=60.0, memory_bytes=256 * 1024**2)
"""For code that ends by itself or at another limit, however busy the machine is."""


def run(code: str, limits: Limits = PATIENT) -> SandboxResult:
    return run_function(code, "f", INPUTS, limits)


@pytest.mark.parametrize("level", LEVELS)
def test_values_come_back_in_order_with_their_types(level: Level) -> None:
    code = "def f(x):\n    return [x, x / 1, x == 1, None, str(x), {x: (x, {x}, b'b', 2j, frozenset())}]"
    result = run_function(code, "f", INPUTS, PATIENT, level)
    assert (result.status, result.level) == ("ok", level)
    assert result.value[1] == [1, 1.0, True, None, "1", {1: (1, {1}, b"b", 2j, frozenset())}]
    assert [type(item) for item in result.value[1][:3]] == [int, float, bool]


def test_every_input_is_a_fresh_copy() -> None:
    code = "def f(x):\n    x.append(1)\n    return x"
    shared = [5]
    assert run_function(code, "f", [[shared], [shared]]).value == ([5, 1], [5, 1])
    assert shared == [5]


def test_the_standard_library_can_be_imported() -> None:
    code = "import math, itertools, sqlite3, asyncio, zoneinfo, hashlib\ndef f(x): return math.floor(x + 0.5)"
    assert run(code).value == (0, 1, 2, 3)


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("def f(x):\n    while True: pass", "timeout"),
        ("while True: pass", "timeout"),
        ("def f(x): return len([0] * 10**10)", "memory"),
        ("def f(x):\n    while True: print('x' * 1000)", "output_limit"),
        ("def f(x): return 'x' * 10**6", "output_limit"),
        ("import os\ndef f(x):\n    while True: os.fork()", "denied"),
        ("import sys\ndef f(x): sys.exit(0)", "error"),
        ("import os\ndef f(x): os._exit(0)", "error"),
        ("import os\ndef f(x): os.abort()", "killed"),
        ("def f(x): return f(x)", "error"),
        ("def f(x): return object()", "error"),
        ("def f(x): return 10**5000", "error"),
        ("def f(x):\n    a = []\n    a.append(a)\n    return a", "error"),
        ("import os\ndef f(x): os.write(4, b'nonsense\\n')", "error"),
        ('import os\ndef f(x): os.write(4, b\'{"status": "ok", "value": {"a": 1, "b": 2}}\\n\')', "error"),
        ("def f(x) return x", "error"),
        ("def g(x): return x", "error"),
        ("f = 3", "error"),
        ("", "error"),
        ("\0", "error"),
        ("#" * 70_000, "error"),
    ],
)
def test_whatever_else_a_function_does_ends_typed_and_without_values(code: str, status: str) -> None:
    result = run(code, QUICK if status == "timeout" else PATIENT)
    assert (result.status, result.value) == (status, None)
    assert result.detail


@pytest.mark.parametrize(
    ("code", "stdin", "status", "stdout"),
    [
        ("print(sum(map(int, input().split())))", "2 3\n", "ok", "5\n"),
        ("import sys\nsys.exit(0)", "", "ok", ""),
        ("import os\nprint('x', flush=True)\nos._exit(0)", "", "ok", "x\n"),
        ("import sys\nprint('x')\nsys.exit(3)", "", "error", "x\n"),
        ("if __name__ == '__main__': print('main')", "", "ok", "main\n"),
        ("open('a', 'w').write('hi')\nprint(open('a').read())", "", "ok", "hi\n"),
        ("print(len(input()))", "x" * 200_000, "ok", "200000\n"),
        ("print('never read')", "x" * 200_000, "ok", "never read\n"),
    ],
)
def test_a_program_reads_stdin_and_writes_stdout(code: str, stdin: str, status: str, stdout: str) -> None:
    result = run_program(code, stdin, PATIENT)
    assert (result.status, result.stdout) == (status, stdout)


@pytest.mark.parametrize(
    "code",
    [
        "import threading\nthreading.Thread(target=lambda: print('late')).start()",
        "import atexit\natexit.register(lambda: print('late'))",
        "import io, sys\nprint('late')\nsys.stdout = io.StringIO()",
    ],
)
def test_what_a_program_prints_at_its_end_is_there(code: str) -> None:
    assert run_program(code, limits=PATIENT).stdout == "late\n"


@pytest.mark.parametrize(
    "code",
    [
        "import os\ndef f(x): os.write(4, b'{\"call\": 1}\\n'); os._exit(0)",
        'import os\nbad = \'{"status": "ok", "value": {"complex": [1%s, 1]}}\\n\' % (\'0\' * 400)\n'
        "def f(x): os.write(4, bad.encode() * 9)",
        "class E(Exception):\n    def __str__(self): raise RuntimeError\ndef f(x): raise E",
        "import sys\ndef f(x):\n    sys.stdout = 3\n    raise ValueError",
    ],
)
def test_nothing_that_code_writes_or_breaks_is_a_failure_of_the_sandbox(code: str) -> None:
    assert run(code).status == "error"


@pytest.mark.slow
def test_the_wall_deadline_is_for_all_calls_together() -> None:
    assert run("import time\ndef f(x): time.sleep(0.4); return x", QUICK).status == "timeout"


@pytest.mark.slow
def test_what_was_printed_before_an_end_is_kept() -> None:
    result = run_program("print('before', flush=True)\nwhile True: pass", limits=QUICK)
    assert (result.status, result.stdout) == ("timeout", "before\n")


EXPECT = "try: candidate([])\n    except IndexError: return\n    raise AssertionError('nothing was raised')"
CHECK = "def check(candidate):\n    assert candidate([3, 1]) == (1, 3)\n    assert candidate([]) == ()"


@pytest.mark.parametrize(
    ("code", "tests", "status", "detail"),
    [
        ("def f(x): return tuple(sorted(x))", CHECK, "ok", ""),
        ("def f(x): return sorted(x)", CHECK, "error", "AssertionError"),
        ("def f(x): raise ValueError('no')", CHECK, "error", "ValueError: no"),
        ("def f(x): return x", "def check(candidate): pass", "error", "no test called the function"),
        ("def f(x): return x", "", "error", "check"),
    ],
)
def test_assertions_decide_in_a_jail_of_their_own(code: str, tests: str, status: str, detail: str) -> None:
    result = run_tests(code, "f", tests, PATIENT)
    assert result.status == status
    assert detail in result.detail


@pytest.mark.parametrize(
    ("code", "body", "status"),
    [
        ("def f(x, *, by=1): return x + by", "assert candidate(1, by=2) == 3", "ok"),
        ("def f(x, *, by=1): return x + 1", "assert candidate(x=1, by=2) == 3", "error"),
        ("def f(x): x.sort()", "x = [2, 1]\n    assert candidate(x) is None and x == [1, 2]", "ok"),
        ("def f(x): sorted(x)", "x = [2, 1]\n    assert candidate(x) is None and x == [1, 2]", "error"),
        ("def f(x): x['k'] = [x.pop('j')]", "x = {'j': 1}\n    candidate(x)\n    assert x == {'k': [1]}", "ok"),
        ("def f(*, x): x.add(3)", "x = {1}\n    candidate(x=x)\n    assert x == {1, 3}", "ok"),
        ("def f(x): x.append(x); return 1", "x = [1]\n    assert candidate(x) == 1 and x == [1]", "ok"),
        ("def f(x): return x[0]", EXPECT, "ok"),
        ("class Own(IndexError): pass\ndef f(x): raise Own('no')", EXPECT, "ok"),
        ("def f(x): raise KeyError(1)", EXPECT, "error"),
        ("def f(x): return 0", EXPECT, "error"),
        ("def f(x): raise SystemExit", EXPECT, "error"),
        ("def f(x): bytes([255]).decode()", EXPECT.replace("IndexError", "UnicodeError"), "ok"),
    ],
)
def test_assertions_can_expect_keywords_changes_and_exceptions(code: str, body: str, status: str) -> None:
    assert run_tests(code, "f", f"def check(candidate):\n    {body}", PATIENT).status == status


@pytest.mark.slow
def test_a_session_keeps_its_names_and_starts_afresh_after_its_end() -> None:
    session = PythonSession(QUICK)
    assert session.run("x = 20\nprint(x)") == "20\n"
    assert session.run("print(x + 1)") == "21\n"
    assert session.run("print(1)\n1 / 0") == "1\nerror: ZeroDivisionError: division by zero"
    assert session.run("print(x)") == "20\n"
    assert "all names are lost" in session.run("while True: pass")
    assert "NameError" in session.run("print(x)")
    session.close()
    session.close()


def test_forging_the_results_earns_nothing() -> None:
    env = Functions()
    env.reset(seed=0)
    forged = 'import os\nos.write(4, b\'{"status": "ok", "value": "all"}\\n\' * 9)\ndef f(x): return 0'
    assert env.step(Reply(forged))[4]["reward_parts"]["all"] == 0.0


@pytest.mark.slow
def test_no_process_is_left_behind() -> None:
    run("def f(x): return x")
    process = forking.ZYGOTES["isolated"]._process
    assert process is not None
    before = descendants(process.pid)
    forgotten = PythonSession(QUICK)
    forgotten.run("x = 1")
    del forgotten
    for code in ("import time\ndef f(x): time.sleep(100)", "def f(x):\n    while True: print(x)"):
        run(code, QUICK)
    deadline = time.monotonic() + 10.0
    while descendants(process.pid) - before and time.monotonic() < deadline:  # a jail's answer leaves before it does
        time.sleep(0.01)
    assert process.poll() is None
    assert descendants(process.pid) <= before


def descendants(ancestor: int) -> set[int]:
    """Processes below this one that exist and are not merely waiting to be reaped."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if state != "Z":
            parents[int(stat.parent.name)] = int(parent)
    found = {ancestor}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {ancestor}


def test_fifty_runs_at_once_do_not_meet() -> None:
    def echo(number: int) -> str:
        return run_program("open('f', 'w').write(input())\nprint(open('f').read())", str(number), PATIENT).stdout

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(echo, range(50))) == [f"{number}\n" for number in range(50)]


def test_a_jail_outlives_the_thread_that_made_it_and_the_zygote_its_death() -> None:
    sessions: list[PythonSession] = []

    def start() -> None:
        sessions.append(PythonSession(PATIENT))
        sessions[0].run("x = 1")

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert sessions[0].run("print(x)") == "1\n"
    process = forking.ZYGOTES["isolated"]._process
    assert process is not None
    process.kill()
    process.wait()
    assert run_program("print(2)").stdout == "2\n"
    sessions[0].close()


def test_a_process_that_cannot_start_is_a_failure_of_the_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(forking.ZYGOTES, "isolated", forking.Zygote("isolated"))
    monkeypatch.setattr(forking, "sys", SimpleNamespace(executable="/no/such/python", platform="linux"))
    with pytest.raises(SandboxError, match="no process could be started"):
        run("def f(x): return x")


def test_another_system_is_said_so_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(forking.ZYGOTES, "isolated", forking.Zygote("isolated"))
    monkeypatch.setattr(forking, "sys", SimpleNamespace(executable="", platform="darwin"))
    with pytest.raises(SandboxError, match=r"needs Linux.*this is darwin"):
        run("def f(x): return x")


@pytest.mark.parametrize("level", LEVELS)
def test_limits_that_cannot_be_set_are_a_failure_of_the_sandbox(level: Level) -> None:
    with pytest.raises(SandboxError, match=rf"no jail of level {level} could be made"):
        run_function("def f(x): return x", "f", INPUTS, Limits(memory_bytes=2**80), level)


def test_a_slow_machine_is_a_failure_of_the_sandbox_and_no_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("envs.sandbox.jail.END_S", 0.1)
    assert run("def f(x): return x").status == "ok"
    started = [zygote._process.pid for zygote in forking.ZYGOTES.values() if zygote._process is not None]
    for pid in started:
        os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(SandboxError, match=r"could be made: none within 0\.1 s"):
            run_function("def f(x): return x", "f", INPUTS, Limits(start_s=0.1))
    finally:
        for pid in started:
            os.kill(pid, signal.SIGCONT)
    assert run("def f(x): return x").status == "ok"


def test_what_programs_use_of_the_kernel_is_allowed() -> None:
    code = """
import asyncio, fcntl, mmap, os, selectors, shutil, signal, socket, sqlite3, tempfile, threading, time
from concurrent.futures import ThreadPoolExecutor
with tempfile.TemporaryDirectory() as folder:
    shutil.copyfile(os.__file__, folder + "/copy")
    os.rename(folder + "/copy", folder + "/moved")
database = sqlite3.connect("data")
database.execute("create table t (a)")
database.commit()
ours, theirs = socket.socketpair()
ours.settimeout(9)
theirs.sendall(b"x")
assert ours.recv(1) == b"x"
async def both(): return await asyncio.gather(asyncio.to_thread(sum, [1, 2]), asyncio.sleep(0.01, 3))
assert asyncio.run(both()) == [3, 3]
with ThreadPoolExecutor(4) as pool: assert list(pool.map(abs, [-1, -2])) == [1, 2]
file = open("mapped", "w+b")
file.write(bytes(4096))
file.flush()
fcntl.flock(file, fcntl.LOCK_EX)
mmap.mmap(file.fileno(), 4096).flush()
selectors.DefaultSelector()
threading.stack_size(2**26)
thread = threading.Thread(target=print, args=("deep",))
thread.start()
thread.join()
signal.signal(signal.SIGALRM, lambda *_: print("alarm"))
signal.setitimer(signal.ITIMER_REAL, 0.01)
signal.pause()
print(shutil.get_terminal_size().columns, os.cpu_count() > 0, time.process_time() > 0)
"""
    result = run_program(code, limits=PATIENT, level="isolated")
    assert (result.status, result.stdout) == ("ok", "deep\nalarm\n80 True True\n"), result.detail
