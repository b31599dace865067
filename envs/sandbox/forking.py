"""How is the process that jails are forked from started, given jobs and ended?"""

import atexit
import contextlib
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from envs.sandbox.limits import SandboxError

ZYGOTE_FILE = Path(__file__).with_name("zygote.py")
END_S = 10.0
"""How long it may take to end."""


class Zygote:
    """The process that jails are forked from. It starts with the first jail, and again if it has died.

    There is one for isolated jails, which has left the host's file system, and one for the other levels.
    """

    def __init__(self, kind: Literal["isolated", "other"]) -> None:
        self._kind = kind
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def submit(self, job: Mapping[str, Any], descriptors: list[int], start_s: float) -> None:
        """Hand over a job and its descriptors. Raises `SandboxError`."""
        message = json.dumps(job).encode()
        with self._lock:
            for _ in range(2):  # sending fails if the zygote has died since the last job: then start another, once
                connection = self._socket or self._start(start_s)
                with contextlib.suppress(OSError):
                    socket.send_fds(connection, [message], descriptors)
                    return
                self._stop()
        raise SandboxError("the process that jails are forked from dies repeatedly; see its messages above")

    def _start(self, start_s: float) -> socket.socket:
        if sys.platform != "linux":
            raise SandboxError(f"the sandbox needs Linux (namespaces, Landlock, seccomp); this is {sys.platform}")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-I", "-S", "-B", str(ZYGOTE_FILE), str(theirs.fileno()), self._kind]
        try:
            with theirs:  # close our copy after the fork, or the zygote's death would not close the connection
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    env={},
                    cwd="/",
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )
        except OSError as error:
            ours.close()
            raise SandboxError(f"no process could be started: {error}") from error
        ours.settimeout(start_s)
        try:
            said = ours.recv(1024).decode()
        except TimeoutError:
            said = f"not within {start_s} s"
        self._socket = ours
        if said != "ready":
            self._stop()
            raise SandboxError(f"the process that jails are forked from is not ready: {said or 'it died'}")
        return ours

    def _stop(self) -> None:
        if self._socket is not None:
            self._socket.close()  # it ends when it sees this
            self._socket = None
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(END_S)
            self._process = None

    def close(self) -> None:
        """End the zygote; running jails go on."""
        with self._lock:
            self._stop()


ZYGOTES = {kind: Zygote(kind) for kind in ("isolated", "other")}
for _zygote in ZYGOTES.values():
    atexit.register(_zygote.close)
