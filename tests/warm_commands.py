"""How do commands of polygym start in milliseconds in tests? `subprocess.Popen` asks tests/warm_server.py for them.

`python -m rl`, `sft` and `benchmarks` are forked by the server, and do what they do otherwise. Other programs, and
commands that would import another copy of polygym, start by themselves; with `POLYGYM_COLD=1`, or on a machine with
GPUs, all do.
"""

import contextlib
import json
import os
import select
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

REPO = Path(__file__).parents[1]
WARM = {"rl", "sft", "benchmarks"}
COLD = {"benchmarks.chaos", "benchmarks.replay", "benchmarks.engine", "benchmarks.matched_forward"}
"""The first two look at, and end, all processes below their own: servers too. The others choose the number of threads
before they import anything."""
START_TIMEOUT_S = 120


def starts_warm() -> bool:
    """CUDA cannot be used in a process that was forked after vLLM had looked for it."""
    return not os.environ.get("POLYGYM_COLD") and not Path("/dev/nvidiactl").exists()


@contextlib.contextmanager
def warm_commands(folder: Path) -> Iterator[None]:
    """Start a server for the processes that start inside the block; its address is in this folder."""
    address, site = str(folder / "server"), folder / "site"
    site.mkdir()
    shutil.copy(REPO / "tests" / "warm_site.py", site / "sitecustomize.py")
    os.environ["PYTHONPATH"] = ":".join(filter(None, (str(site), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "tests.warm_server", address]
    server = subprocess.Popen(command, cwd=REPO, stdin=subprocess.DEVNULL)
    os.environ["POLYGYM_WARM"] = address
    cold, subprocess.Popen = subprocess.Popen, WarmPopen
    try:
        connected(address, server).close()
        yield
    finally:
        subprocess.Popen = cold
        server.kill()
        server.wait()


class WarmPopen(subprocess.Popen[Any]):
    """A process that is not a child of this one: the server tells its end. The methods are those of Python 3.11."""

    _server: socket.socket | None = None

    def _execute_child(self: Any, args: Any, executable: Any, preexec_fn: Any, *rest: Any) -> None:
        parent: Any = super()
        _, pass_fds, folder, environment, _, _, shell, *pipes = rest[:13]
        if is_command(args, WARM) and preexec_fn is None and not pass_fds and not shell:
            request = {
                "command": [str(one) for one in args[1:]],
                "environment": dict(os.environ if environment is None else environment),
                "folder": str(Path(folder or ".").absolute()),
                "blocked": [],
                "session": None if rest[-2] else os.getsid(0),
                "process_group": None if rest[-1] == -1 else rest[-1],
            }
            files = [standard if file == -1 else file for standard, file in enumerate((pipes[0], pipes[3], pipes[5]))]
            server = connected(os.environ["POLYGYM_WARM"])
            if pid := ask(server, request, files):
                self.pid, self._server, self._child_created = pid, server, True
                self._close_pipe_fds(*pipes)
                return
            server.close()
        if is_command(args, COLD):
            environment = {**(os.environ if environment is None else environment), "POLYGYM_WARM": ""}
        more = (*rest[:3], environment, *rest[4:])
        parent._execute_child(args, executable, preexec_fn, *more)

    def _try_wait(self: Any, wait_flags: int) -> tuple[int, int]:
        if self._server is None:
            parent: Any = super()
            return parent._try_wait(wait_flags)
        if wait_flags and not select.select([self._server], [], [], 0)[0]:
            return 0, 0
        with self._server as server:
            status = server.recv(4)
        return self.pid, int.from_bytes(status, "big") if status else 9

    def _internal_poll(self: Any, *args: Any, **kwargs: Any) -> int | None:
        if self._server is None:
            parent: Any = super()
            return parent._internal_poll(*args, **kwargs)
        if self.returncode is None and self._waitpid_lock.acquire(blocking=False):
            with contextlib.ExitStack() as stack:
                stack.callback(self._waitpid_lock.release)
                pid, status = (0, 0) if self.returncode is not None else self._try_wait(os.WNOHANG)
                if pid == self.pid:
                    self._handle_exitstatus(status)
        return self.returncode


def ask(server: socket.socket, request: dict[str, Any], files: list[int]) -> int:
    """The number of the process that the server has forked, or 0 if this one must start by itself."""
    data = json.dumps(request).encode()
    server.settimeout(START_TIMEOUT_S)
    socket.send_fds(server, [len(data).to_bytes(4, "big")], files)
    server.sendall(data)
    pid = int.from_bytes(server.recv(4), "big")
    server.settimeout(None)  # what follows is the process's end
    return pid


def is_command(args: Any, modules: Collection[str]) -> bool:
    """Whether it runs one of these modules, or one of its parts; not those of `COLD`, except for themselves."""
    command = [] if isinstance(args, str | bytes | os.PathLike) else [str(one) for one in args]
    if command[:2] != [sys.executable, "-m"] or len(command) < 3:
        return False
    return command[2] in modules or (command[2] not in COLD and command[2].split(".")[0] in modules)


def connected(address: str, starting: "subprocess.Popen[Any] | None" = None) -> socket.socket:
    """A connection to the server, which takes some seconds to start."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        client = socket.socket(socket.AF_UNIX)
        try:
            client.connect(address)
            return client
        except OSError:
            client.close()
            if starting is None or starting.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.1)
