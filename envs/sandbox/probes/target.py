"""What do probes try to reach? Things of this process that jailed code may not see, change or end."""

import contextlib
import ctypes
import os
import socket
import string
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SECRET = "polygym-probe-secret"
IPC_CREATE, IPC_REMOVE, IPC_STAT = 0o1000, 0, 2
libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Target:
    """A folder with a secret and sockets, a process, and System V shared memory; all of it belongs to this process."""

    folder: Path
    port: int
    abstract: str
    datagrams: tuple[socket.socket, socket.socket]
    """In the file system, and abstract: data that arrives there has left a jail."""
    victim: int
    segment: int
    """Negative if the kernel has no System V shared memory."""

    def fill(self, code: str) -> str:
        values = {
            "secret_file": str(self.folder / "secret"),
            "planted": str(self.folder / "open" / "planted"),
            "unix_socket": str(self.folder / "open" / "socket"),
            "unix_datagrams": str(self.folder / "open" / "datagrams"),
            "port": str(self.port),
            "abstract": self.abstract,
            "victim": str(self.victim),
            "segment": str(self.segment),
            "host": str(os.getpid()),
            "secret": SECRET,
            "package": str(Path(next(path for path in sys.path if path.endswith(("site-packages", "dist-packages"))))),
        }
        return string.Template(code).substitute(values)

    @property
    def is_untouched(self) -> bool:
        return (
            {path.name for path in (self.folder / "open").iterdir()} == {"socket", "datagrams"}
            and (self.folder / "secret").read_text() == SECRET
            and os.waitid(os.P_PID, self.victim, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
            and not any(map(_has_arrived, self.datagrams))
            and (self.segment < 0 or libc.shmctl(self.segment, IPC_STAT, ctypes.create_string_buffer(512)) == 0)
        )


def _has_arrived(datagrams: socket.socket) -> bool:
    try:
        datagrams.recv(1)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def target() -> Iterator[Target]:
    """A new target for one probe, with a secret also in the environment and in an open descriptor."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="polygym-probe-")))
        folder.chmod(0o755)
        (folder / "secret").write_text(SECRET)
        (folder / "open").mkdir()
        (folder / "open").chmod(0o777)
        abstract = f"polygym-probe-{os.getpid()}"
        tcp = stack.enter_context(socket.socket(socket.AF_INET))
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        for address in (str(folder / "open" / "socket"), f"\0{abstract}"):
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(address)
            listener.listen()
        in_files, in_names = (
            stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK))
            for _ in range(2)
        )
        in_files.bind(str(folder / "open" / "datagrams"))
        in_names.bind(f"\0{abstract}-datagrams")
        for path in (folder / "open").iterdir():
            path.chmod(0o777)
        victim = subprocess.Popen(["sleep", "600"], start_new_session=True)
        stack.callback(victim.wait)
        stack.callback(victim.kill)
        segment = libc.shmget(0, ctypes.c_size_t(4096), IPC_CREATE | 0o600)
        stack.callback(libc.shmctl, segment, IPC_REMOVE, None)
        inherited = stack.enter_context(open(folder / "secret", "rb"))
        os.set_inheritable(inherited.fileno(), True)
        os.environ["POLYGYM_PROBE"] = SECRET
        stack.callback(os.environ.pop, "POLYGYM_PROBE", None)
        yield Target(folder, tcp.getsockname()[1], abstract, (in_files, in_names), victim.pid, segment)
