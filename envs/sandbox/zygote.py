"""The process that jails are forked from: started once as `python -I -S`, so that a jail costs a fork and no start-up.

Arguments: a socket, and whether jails are `isolated` (then this process first leaves the host's file system, once for
all of them) or not. It sends `ready`, or why it is not ready. Then each message is one job: JSON and seven descriptors.
Each job gets a supervisor, which applies the namespaces, forks the jailed process, waits for it, decides on its threads
and writes how it ended. The jail dies when the other end of its lifeline closes, so with the process that requested it;
the jail itself never has the lifeline. This process ends when its socket closes; running jails continue.
"""

import contextlib
import fcntl
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import layers
import runner
import system_calls
import thread_gate

sys.path.pop(0)

PRELOADED = (
    *(
        "abc",
        "array",
        "base64",
        "bisect",
        "calendar",
        "cmath",
        "collections",
        "contextlib",
        "copy",
        "csv",
        "dataclasses",
    ),
    *(
        "datetime",
        "decimal",
        "enum",
        "fractions",
        "functools",
        "hashlib",
        "heapq",
        "inspect",
        "io",
        "itertools",
        "json",
    ),
    *("locale", "math", "numbers", "operator", "pprint", "queue", "random", "re", "statistics", "string", "struct"),
    *("textwrap", "threading", "time", "traceback", "types", "typing", "unicodedata", "uuid", "zlib"),
)
INSTALLED = {"site-packages", "dist-packages"}
LEFT_OUT = INSTALLED | {"test", "idlelib", "ensurepip", "lib2to3", "tkinter", "turtledemo"}
LIBRARIES = ("/lib/x86_64-linux-gnu", "/lib/aarch64-linux-gnu", "/lib64", "/usr/lib64")
DATA = ("/dev/urandom", "/dev/null", "/usr/share/zoneinfo")
NUM_JOB_DESCRIPTORS = 7
STATUS = 5
FIRST_FREE, FIRST_MOVED = 6, 500
"""The jail keeps descriptors 0 to 5; 500 is above all that the zygote has open."""


def main() -> None:
    for name in PRELOADED:
        importlib.import_module(name)
    place = Place()
    jobs = socket.socket(fileno=int(sys.argv[1]))
    try:
        if sys.argv[2] == "isolated":
            layers.leave_host(place.visible, place.hidden)
    except OSError as error:
        jobs.send(str(error).encode())
        os._exit(1)
    jobs.send(b"ready")
    gc.collect()
    gc.freeze()  # forks share these pages
    serve(jobs, place)


def serve(jobs: socket.socket, place: "Place") -> None:
    while True:
        message, descriptors, _, _ = socket.recv_fds(jobs, 65_536, NUM_JOB_DESCRIPTORS)
        if not message:
            os._exit(0)
        try:
            child = os.fork()
        except OSError as error:
            tell(descriptors[STATUS], {"failed": f"no process could be forked: {error}"})
        else:
            if child == 0:
                jobs.close()
                supervise(json.loads(message), descriptors, place)
        for descriptor in descriptors:
            os.close(descriptor)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


class Place:
    """What is prepared once for all jails: the files that they may read and see, and their filter of system calls."""

    def __init__(self) -> None:
        library = os.path.dirname(os.__file__)
        others = [*LIBRARIES, *DATA, os.path.join(sys.base_prefix, "lib", "libpython3.so")]
        others = [path for path in others if os.path.exists(path)]
        self.visible = [library, *others]
        self.hidden = [path for name in INSTALLED if os.path.isdir(path := os.path.join(library, name))]
        names = [name for name in os.listdir(library) if name not in LEFT_OUT]
        paths = [os.path.join(library, name) for name in names] + others
        self.readable = [(os.open(path, os.O_PATH), os.path.isdir(path)) for path in paths]
        """Open descriptors, and whether each is a folder: the standard library and its shared libraries."""
        self.processes = os.open("/proc", os.O_PATH)
        is_known = layers.MACHINE in system_calls.ARCHITECTURES
        self.filter = system_calls.call_filter(layers.MACHINE) if is_known else b""  # installing it reports the error


def supervise(job: dict, descriptors: list[int], place: Place) -> None:
    """Run one job to its end and write how it ended to the status pipe. Never returns."""
    *for_jail, status, lifeline = descriptors
    gate = None
    child = 0
    try:
        if job["level"] == "isolated":
            layers.enter_namespaces(job["limits"]["file_bytes"])
        if job["level"] != "process":
            gate = thread_gate.ThreadGate(place.processes)
        child = os.fork()
        if child == 0:
            jailed(job, for_jail, status, place)
    except BaseException as error:
        tell(status, {"failed": f"{type(error).__name__}: {error}"})
        os._exit(0)
    for descriptor in for_jail:
        os.close(descriptor)
    wait_for(child, lifeline, gate)
    _, wait_status, usage = os.wait4(child, 0)
    cpu_s = usage.ru_utime + usage.ru_stime
    tell(
        status,
        {"exit": os.waitstatus_to_exitcode(wait_status), "cpu_s": cpu_s, "max_rss_bytes": usage.ru_maxrss * 1024},
    )
    os._exit(0)


def wait_for(child: int, lifeline: int, gate: thread_gate.ThreadGate | None) -> None:
    """Return when the child has ended; kill it when nobody has the other end of the lifeline open any more.

    Meanwhile decide which of its threads may start.
    """
    handle = os.pidfd_open(child)
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    poll.register(lifeline, 0)  # reports only that the other end has closed
    listener = gate.listener if gate is not None else None
    if listener is not None:
        poll.register(listener, select.POLLIN)
    while not (ready := {descriptor for descriptor, _ in poll.poll()}) & {handle, lifeline}:
        if gate is not None and listener is not None and listener in ready:
            gate.decide(child)
            if gate.listener is None:
                poll.unregister(listener)
                listener = None
    if handle not in ready:
        signal.pidfd_send_signal(handle, signal.SIGKILL)


def tell(status: int, report: dict) -> None:
    with contextlib.suppress(OSError):
        os.write(status, json.dumps(report).encode() + b"\n")


def jailed(job: dict, descriptors: list[int], status: int, place: Place) -> None:
    """Apply every layer of the job's level, then serve requests. Never returns."""
    limits, isolated = job["limits"], job["level"] == "isolated"
    try:
        os.setsid()
        if job["level"] == "process":
            layers.drop_root()
        layers.die_with_parent()  # after changes of the user, which clear it
        os.chdir(layers.SCRATCH if isolated else "/")
        if job["level"] != "process":
            layers.restrict_files(place.readable, layers.SCRATCH if isolated else None)
        layers.drop_privileges()
        moved = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, FIRST_MOVED) for descriptor in (*descriptors, status)]
        for number, descriptor in enumerate(moved):
            os.dup2(descriptor, number, inheritable=False)
        status = STATUS
        os.closerange(FIRST_FREE, os.sysconf("SC_OPEN_MAX"))
        layers.limit_resources(limits["cpu_s"], limits["memory_bytes"], limits["file_bytes"] if isolated else 0)
        if job["level"] != "process":
            layers.install_filter(place.filter)
    except BaseException as error:
        tell(status, {"failed": f"{type(error).__name__}: {error}"})
        os._exit(1)
    os.close(STATUS)
    try:
        code = runner.serve()
    except BaseException:  # whatever the code broke in this process, it did not end well
        code = 1
    os._exit(code)


if __name__ == "__main__":
    main()
