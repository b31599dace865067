"""How many threads may jailed code run? The supervisor decides on every start, since no limit of Linux does.

RLIMIT_NPROC counts all processes of the user (and exempts root), cgroups need privileges, and a thread whose stack is
in shared pages uses no memory that RLIMIT_AS counts. So a filter passes each `clone` of a thread to the supervisor
(Linux 5.5, without privileges). Its flags are in a register, so the code cannot change them while the supervisor
decides.

This file runs inside the zygote (`python -I -S`), so it may import only the standard library.
"""

import contextlib
import errno
import fcntl
import os
import struct

import layers  # pyright: ignore[reportMissingImports]
import system_calls  # pyright: ignore[reportMissingImports]

MAX_THREADS = 64
"""At the same time in one jail; at most twice as many if each of them starts one at once."""
MAX_STARTS = 10_000
"""During the life of one jail, including refused starts: each costs the supervisor some time."""
NEW_LISTENER = 8
RECEIVE, ANSWER, CONTINUE = 0xC0502100, 0xC0182101, 1
NOTICE_BYTES = 80


class ThreadGate:
    """The filter and the descriptor that receives thread starts, which is None if no thread can start any more."""

    def __init__(self, processes: int) -> None:
        """Install the filter in this process and so in all that it will fork. Raises `LayerError`.

        `processes` is an open descriptor of /proc. Linux allows one listener among the filters of a process. If there
        is already another one (as in some container engines), no thread can start at all.
        """
        self._processes = processes
        self._num_starts = 0
        self.listener: int | None = None
        try:
            self.listener = layers.install_filter(system_calls.thread_filter(layers.MACHINE, True), NEW_LISTENER)
        except layers.LayerError:
            layers.install_filter(system_calls.thread_filter(layers.MACHINE, False))

    def decide(self, process: int) -> None:
        """Answer one waiting start of a thread in `process`: it continues, or fails with EAGAIN."""
        if self.listener is None:
            return
        self._num_starts += 1
        notice = bytearray(NOTICE_BYTES)
        with contextlib.suppress(OSError):  # the asking process has ended
            fcntl.ioctl(self.listener, RECEIVE, notice)
            (identity,) = struct.unpack_from("Q", notice)
            is_full = (self._num_threads(process) or self._num_starts) >= MAX_THREADS
            error, flags = (-errno.EAGAIN, 0) if is_full else (0, CONTINUE)
            fcntl.ioctl(self.listener, ANSWER, struct.pack("QqiI", identity, 0, error, flags))
        if self._num_starts >= MAX_STARTS:
            os.close(self.listener)  # from now on the kernel itself answers, with ENOSYS
            self.listener = None

    def _num_threads(self, process: int) -> int:
        """Threads of a child of this process; 0 if /proc does not show it, or shows another PID namespace."""
        try:
            with open(os.open(f"{process}/stat", os.O_RDONLY, dir_fd=self._processes), "rb") as file:
                fields = file.read().rpartition(b") ")[2].split()
        except OSError:
            return 0
        return int(fields[17]) if int(fields[1]) == os.getpid() else 0
