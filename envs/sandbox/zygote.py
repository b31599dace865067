"""The process that jails are forked from: started once as `python -I -S`, so that a jail costs a fork and no start-up.

One job a message on the socket given as the only argument: JSON and seven descriptors. Each job gets a supervisor,
which applies the namespaces, forks the jailed process, waits for it and writes how it ended. The jail dies when the
other end of its lifeline closes, so with whoever asked for it; the jail itself never has the lifeline. This process
ends when its socket closes, and leaves running jails alone.
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
SCRATCH = "/tmp"
NUM_JOB_DESCRIPTORS = 7
STATUS = 5
FIRST_FREE, FIRST_MOVED = 6, 500
"""The jail keeps descriptors 0 to 5; 500 is above all that the zygote has open."""


def main() -> None:
    for name in PRELOADED:
        importlib.import_module(name)
    readable = open_standard_library()
    program = layers.seccomp_program() if layers.MACHINE in layers.ARCHITECTURES else b""
    jobs = socket.socket(fileno=int(sys.argv[1]))
    jobs.send(b"ready")
    gc.collect()
    gc.freeze()  # forks share these pages
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
                supervise(json.loads(message), descriptors, readable, program)
        for descriptor in descriptors:
            os.close(descriptor)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def open_standard_library() -> list[tuple[int, bool]]:
    """What jailed code may read: the standard library without the packages installed in it, and its shared libraries.

    Open descriptors, and whether each is a folder.
    """
    folder = os.path.dirname(os.__file__)
    left_out = {"site-packages", "dist-packages", "test", "idlelib", "ensurepip", "lib2to3", "tkinter", "turtledemo"}
    paths = [os.path.join(folder, name) for name in os.listdir(folder) if name not in left_out]
    paths += ["/lib/x86_64-linux-gnu", "/lib/aarch64-linux-gnu", "/lib64", "/usr/lib64", "/dev/urandom", "/dev/null"]
    paths += ["/usr/share/zoneinfo", os.path.join(sys.base_prefix, "lib", "libpython3.so")]
    return [(os.open(path, os.O_PATH), os.path.isdir(path)) for path in paths if os.path.exists(path)]


def supervise(job: dict, descriptors: list[int], readable: list[tuple[int, bool]], program: bytes) -> None:
    """Run one job to its end and write how it ended to the status pipe. Never returns."""
    *for_jail, status, lifeline = descriptors
    isolated = job["level"] == "isolated"
    child = 0
    try:
        if isolated:
            layers.enter_namespaces(SCRATCH, job["limits"]["file_bytes"])
        child = os.fork()
        if child == 0:
            jailed(job, for_jail, status, readable, program)
    except BaseException as error:
        tell(status, {"failed": f"{type(error).__name__}: {error}"})
        os._exit(0)
    for descriptor in for_jail:
        os.close(descriptor)
    wait_for(child, lifeline)
    _, wait_status, usage = os.wait4(child, 0)
    cpu_s = usage.ru_utime + usage.ru_stime
    tell(
        status,
        {"exit": os.waitstatus_to_exitcode(wait_status), "cpu_s": cpu_s, "max_rss_bytes": usage.ru_maxrss * 1024},
    )
    os._exit(0)


def wait_for(child: int, lifeline: int) -> None:
    """Return when the child has ended; kill it when nobody holds the other end of the lifeline any more."""
    handle = os.pidfd_open(child)
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    poll.register(lifeline, 0)  # reports only that the other end has closed
    ready = {descriptor for descriptor, _ in poll.poll()}
    if handle not in ready:
        signal.pidfd_send_signal(handle, signal.SIGKILL)


def tell(status: int, report: dict) -> None:
    with contextlib.suppress(OSError):
        os.write(status, json.dumps(report).encode() + b"\n")


def jailed(job: dict, descriptors: list[int], status: int, readable: list[tuple[int, bool]], program: bytes) -> None:
    """Put on every layer of the job's level, then serve requests. Never returns."""
    limits, isolated = job["limits"], job["level"] == "isolated"
    try:
        os.setsid()
        if job["level"] == "process":
            layers.drop_root()
        layers.die_with_parent()  # after changes of the user, which clear it
        os.chdir(SCRATCH if isolated else "/")
        if job["level"] != "process":
            layers.restrict_files(readable, SCRATCH if isolated else None)
        layers.drop_privileges()
        moved = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, FIRST_MOVED) for descriptor in (*descriptors, status)]
        for place, descriptor in enumerate(moved):
            os.dup2(descriptor, place, inheritable=False)
        status = STATUS
        os.closerange(FIRST_FREE, os.sysconf("SC_OPEN_MAX"))
        layers.limit_resources(limits["cpu_s"], limits["memory_bytes"], limits["file_bytes"] if isolated else 0)
        if job["level"] != "process":
            layers.filter_system_calls(program)
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
