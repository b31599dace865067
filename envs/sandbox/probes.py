"""Does the sandbox hold? Escapes and cheats, tried for real: each reaches for something that this process guards.

A probe's code prints `ESCAPED` where it got what it wanted; some leave traces that are looked for out here. Used by
`python -m envs sandbox doctor` and by the tests, at every level; `level` is the weakest at which a probe must fail.
"""

import contextlib
import os
import socket
import string
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from envs.sandbox.limits import LEVELS, Level, Limits, SandboxResult
from envs.sandbox.run import run_function, run_program, run_tests

PROBE_LIMITS = Limits(cpu_s=1, wall_s=2.0, memory_bytes=256 * 1024**2)
SECRET = "polygym-probe-secret"


@dataclass(frozen=True, slots=True)
class Target:
    """What the probes reach for; all of it belongs to this process."""

    folder: Path
    port: int
    abstract: str
    victim: int

    def fill(self, code: str) -> str:
        values = {
            "secret_file": str(self.folder / "secret"),
            "planted": str(self.folder / "open" / "planted"),
            "unix_socket": str(self.folder / "open" / "socket"),
            "port": str(self.port),
            "abstract": self.abstract,
            "victim": str(self.victim),
            "host": str(os.getpid()),
            "secret": SECRET,
            "package": str(Path(next(path for path in sys.path if path.endswith("site-packages")))),
        }
        return string.Template(code).substitute(values)

    @property
    def is_untouched(self) -> bool:
        planted = [path for path in (self.folder / "open").iterdir() if path.name != "socket"]
        return not planted and Path(f"/proc/{self.victim}").exists() and (self.folder / "secret").read_text() == SECRET


@contextlib.contextmanager
def target() -> Iterator[Target]:
    """Listeners, a secret in a file, in the environment and in an open descriptor, and a process to kill."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="polygym-probe-")))
        folder.chmod(0o755)
        (folder / "secret").write_text(SECRET)
        (folder / "open").mkdir()
        (folder / "open").chmod(0o777)
        tcp, path_socket, abstract_socket = (
            stack.enter_context(socket.socket(family)) for family in (socket.AF_INET, socket.AF_UNIX, socket.AF_UNIX)
        )
        tcp.bind(("127.0.0.1", 0))
        path_socket.bind(str(folder / "open" / "socket"))
        (folder / "open" / "socket").chmod(0o777)
        abstract = f"polygym-probe-{os.getpid()}"
        abstract_socket.bind("\0" + abstract)
        for listener in (tcp, path_socket, abstract_socket):
            listener.listen()
        victim = subprocess.Popen(["sleep", "600"], start_new_session=True)
        stack.callback(victim.wait)
        stack.callback(victim.kill)
        inherited = stack.enter_context(open(folder / "secret", "rb"))
        os.set_inheritable(inherited.fileno(), True)
        os.environ["POLYGYM_PROBE"] = SECRET
        stack.callback(os.environ.pop, "POLYGYM_PROBE", None)
        yield Target(folder, tcp.getsockname()[1], abstract, victim.pid)


@dataclass(frozen=True, slots=True)
class Probe:
    """One attempt. `statuses` are the ends that count as held; `run` how the code is run."""

    name: str
    code: str
    level: Level = "restricted"
    statuses: tuple[str, ...] = ("ok", "error", "denied", "killed", "memory")
    run: Callable[[str, Level], SandboxResult] = lambda code, level: run_program(code, "", PROBE_LIMITS, level)


@dataclass(frozen=True, slots=True)
class ProbeResult:
    probe: Probe
    held: bool
    detail: str

    def is_expected(self, level: Level) -> bool:
        return self.held or LEVELS.index(level) < LEVELS.index(self.probe.level)


def run_probe(probe: Probe, level: Level, aim: Target) -> ProbeResult:
    """Try one probe at a level. Raises `SandboxError` when the sandbox itself fails."""
    result = probe.run(aim.fill(probe.code), level)
    held = result.status in probe.statuses and "ESCAPED" not in result.stdout + result.detail and aim.is_untouched
    for planted in (aim.folder / "open").iterdir():
        if planted.name != "socket":
            planted.unlink()
    return ProbeResult(probe, held, f"{result.status} {result.detail} {result.stdout[:200]}".strip())


def _function(code: str, level: Level) -> SandboxResult:
    """Called as a function whose value must be the whole number 1; a value that only claims to be equal escapes."""
    result = run_function(code, "f", [[0]], PROBE_LIMITS, level)
    fooled = result.status == "ok" and result.value[0] == 1 and type(result.value[0]) is not int
    return SandboxResult("ok", level, stdout="ESCAPED") if fooled else result


def _tests(code: str, level: Level) -> SandboxResult:
    """Judged by assertions that it does not fulfil; passing them is an escape."""
    tests = f"def check(candidate):\n    assert candidate(2) == 4 + {len(SECRET)} - {len(SECRET)}, 'hidden'\n"
    result = run_tests(code, "f", tests, PROBE_LIMITS, level)
    return SandboxResult("ok", level, stdout="ESCAPED") if result.status == "ok" else result


_SYSTEM_CALL = """
import ctypes, os, platform
libc = ctypes.CDLL(None, use_errno=True)
def call(x86, arm, *arguments):
    number = x86 if platform.machine() == "x86_64" else arm
    return libc.syscall(ctypes.c_long(number), *arguments)
"""
_ENDLESS = ("timeout", "killed")

PROBES = (
    Probe("infinite loop", "while True: pass", "process", _ENDLESS),
    Probe("sleep without end", "import time\ntime.sleep(10**6)", "process", _ENDLESS),
    Probe(
        "ignores signals",
        "import signal, time\nfor n in (1, 2, 3, 15): signal.signal(n, signal.SIG_IGN)\ntime.sleep(10**6)",
        "process",
        _ENDLESS,
    ),
    Probe(
        "busy threads",
        "import threading\ndef spin():\n    while True: pass\nfor _ in range(8): threading.Thread(target=spin).start()",
        "process",
        (*_ENDLESS, "error"),
    ),
    Probe("waits for input", "input()\nprint('ESCAPED')", "process", ("error",)),
    Probe(
        "fork bomb",
        "import os\nfor _ in range(50):\n    if os.fork() == 0:\n        print('ESCAPED', flush=True); os._exit(0)",
        "process",
    ),
    Probe(
        "daemon that outlives its run",
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(4)\n"
        "        open('$planted', 'w').close()\n        os._exit(0)\n    os._exit(0)",
        "process",
    ),
    Probe("runs another program", "import os\nos.execv('/bin/sh', ['sh', '-c', 'echo ESCAPED'])"),
    Probe("posix_spawn", "import subprocess\nprint(subprocess.run(['/bin/echo', 'ESCAPED']))", "process"),
    Probe("memory bomb", "a = []\nwhile True: a.append(bytearray(10**7))", "process", ("memory", *_ENDLESS)),
    Probe("mapped memory", "import mmap\nm = mmap.mmap(-1, 4 * 1024**3)\nprint('ESCAPED')", "process"),
    Probe(
        "memory in nameless files",
        "import os\nf = os.memfd_create('x')\nfor _ in range(100): os.write(f, bytes(10**7))\nprint('ESCAPED')",
    ),
    Probe("floods stdout", "while True: print('x' * 10**6)", "process", ("output_limit",)),
    Probe(
        "floods stderr",
        "import sys\nwhile True: print('x' * 10**6, file=sys.stderr)",
        "process",
        ("output_limit",),
    ),
    Probe(
        "fills the disk with one file",
        "f = open('big', 'wb')\nfor _ in range(100): f.write(bytes(10**6))\nprint('ESCAPED')",
        "process",
    ),
    Probe(
        "fills the disk with many files",
        "for i in range(2000): open(f'f{i}', 'wb').write(bytes(10**5))\nprint('ESCAPED')",
        "process",
    ),
    Probe("TCP", "import socket\nsocket.create_connection(('127.0.0.1', $port), 1)\nprint('ESCAPED')"),
    Probe(
        "UDP",
        "from socket import *\nsocket(AF_INET, SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))\nprint('ESCAPED')",
    ),
    Probe("name lookup", "import socket\nsocket.getaddrinfo('localhost', 80)\nsocket.socket()\nprint('ESCAPED')"),
    Probe(
        "socket in the file system",
        "import socket\nsocket.socket(socket.AF_UNIX).connect('$unix_socket')\nprint('ESCAPED')",
    ),
    Probe(
        "abstract socket",
        "import socket\nsocket.socket(socket.AF_UNIX).connect('\\0$abstract')\nprint('ESCAPED')",
    ),
    Probe("environment", "import os\nprint('ESCAPED' if '$secret' in str(os.environ) else '')", "process"),
    Probe(
        "environment of its own memory",
        "print('ESCAPED' if b'$secret' in open('/proc/self/environ', 'rb').read() else '')",
        "process",
    ),
    Probe("environment of the host", "open('/proc/$host/environ', 'rb').read()\nprint('ESCAPED')"),
    Probe("memory of the host", "open('/proc/$host/mem', 'rb')\nprint('ESCAPED')"),
    Probe("descriptors of the host", "import os\nos.listdir('/proc/$host/fd')\nprint('ESCAPED')"),
    Probe(
        "inherited descriptors",
        "import os\nfor n in range(5, 300):\n    try:\n        if os.read(n, 1) is not None: print('ESCAPED', n)\n"
        "    except OSError: pass",
        "process",
    ),
    Probe("secret file", "print('ESCAPED', open('$secret_file').read())"),
    Probe("password file", "print('ESCAPED', open('/etc/passwd').read()[:10])"),
    Probe("list of the root folder", "import os\nprint('ESCAPED', os.listdir('/'))"),
    Probe("installed packages and their data", "import os\nprint('ESCAPED', os.listdir('$package'))"),
    Probe("writes outside", "open('$planted', 'w').close()\nprint('ESCAPED')"),
    Probe("changes rights outside", "import os\nos.chmod('$secret_file', 0o777)\nprint('ESCAPED')"),
    Probe("changes times outside", "import os\nos.utime('$secret_file', (0, 0))\nprint('ESCAPED')"),
    Probe("removes outside", "import os\nos.unlink('$secret_file')\nprint('ESCAPED')"),
    Probe("symbolic link", "import os\nos.symlink('$secret_file', 'link')\nprint('ESCAPED', open('link').read())"),
    Probe("hard link", "import os\nos.link('$secret_file', 'link')\nprint('ESCAPED', open('link').read())"),
    Probe("named pipe", "import os\nos.mkfifo('pipe')\nprint('ESCAPED')"),
    Probe("signals the host", "import os\nos.kill($host, 0)\nprint('ESCAPED')"),
    Probe("kills a process", "import os\nos.kill($victim, 9)\nprint('ESCAPED')"),
    Probe("kills everything", "import os\nos.kill(-1, 9)\nprint('ESCAPED')"),
    Probe(
        "attaches to a process",
        _SYSTEM_CALL + "print('ESCAPED' if call(101, 117, 16, $victim, 0, 0) == 0 else '')",
    ),
    Probe(
        "reads another process's memory",
        _SYSTEM_CALL + "print('ESCAPED' if call(310, 270, $host, None, 0, None, 0, 0) == 0 else '')",
    ),
    Probe(
        "limits another process",
        "import resource\nresource.prlimit($victim, resource.RLIMIT_CPU, (1, 1))\nprint('ESCAPED')",
    ),
    Probe(
        "raises its limits",
        "import resource\nresource.setrlimit(resource.RLIMIT_AS, (2**40, 2**40))\nprint('ESCAPED')",
        "process",
    ),
    Probe("uses rights of root", "import os\nos.setuid(4321)\nprint('ESCAPED')", "process"),
    Probe(
        "namespaces of its own",
        _SYSTEM_CALL + "print('ESCAPED' if call(272, 97, 0x10000000) == 0 else '')",
    ),
    Probe("mounts", _SYSTEM_CALL + "print('ESCAPED' if libc.mount(b'none', b'/tmp', b'tmpfs', 0, None) == 0 else '')"),
    Probe("io_uring", _SYSTEM_CALL + "print('ESCAPED' if call(425, 425, 1, bytes(120)) >= 0 else '')"),
    Probe("BPF", _SYSTEM_CALL + "print('ESCAPED' if call(321, 280, 0, bytes(64), 64) >= 0 else '')"),
    Probe(
        "system calls of another ABI",
        _SYSTEM_CALL + "print('ESCAPED' if call(0x40000000 + 39, 0x40000000 + 172) > 0 else '')",
    ),
    Probe(
        "holds on to its own pipes",
        "import os, time\nfor n in range(6):\n    try: os.open(f'/proc/self/fd/{n}', os.O_WRONLY)\n"
        "    except OSError: pass\ntime.sleep(10**6)",
        "process",
        _ENDLESS,
    ),
    Probe(
        "outlives its supervisor",
        _SYSTEM_CALL + "print('ESCAPED' if libc.prctl(1, 0, 0, 0, 0) == 0 else '')",
    ),
    Probe(
        "has the kernel send signals",
        "import fcntl\nfcntl.fcntl(1, 8, $victim)\nprint('ESCAPED')",
    ),
    Probe("truncates outside", "import os\nos.truncate('$secret_file', 0)\nprint('ESCAPED')"),
    Probe(
        "a value that equals everything",
        "class Any(int):\n    def __eq__(self, other): return True\ndef f(x): return Any(7)",
        "process",
        run=_function,
    ),
    Probe("exits before it is judged", "import os\ndef f(x): os._exit(0)", "process", run=_tests),
    Probe("exits politely before it is judged", "import sys\ndef f(x): sys.exit(0)", "process", run=_tests),
    Probe("exits when it is loaded", "import os\nos._exit(0)", "process", run=_tests),
    Probe(
        "forges the verdict",
        'import os\nos.write(4, b\'{"status": "ok", "num_calls": 1}\\n\' * 5)\ndef f(x): return 0',
        "process",
        run=_tests,
    ),
    Probe(
        "replaces what assertions use",
        "import builtins\nclass Never(Exception): pass\nbuiltins.AssertionError = Never\n"
        "class Any:\n    def __eq__(self, other): return True\ndef f(x): return Any()",
        "process",
        run=_tests,
    ),
    Probe(
        "searches its memory for the tests",
        "import gc, sys\ndef f(x):\n    frame, seen = sys._getframe(), []\n    while frame:\n"
        "        seen.append(str(frame.f_locals)); frame = frame.f_back\n"
        "    seen += [str(o) for o in gc.get_objects() if isinstance(o, (dict, list))]\n"
        "    return 4 if any('hid' + 'den' in text for text in seen) else 0",
        "process",
        run=_tests,
    ),
    Probe("output that is no text", "import os\nos.write(1, bytes(range(256)))", "process", ("ok",)),
)
