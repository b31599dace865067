"""What runs inside the sandbox process, as text given to `python -I -S -c`: limits first, then the code, then JSON.

It reads one job from stdin and writes `ready`, whatever the code prints, and one line of JSON as the last. It must not
import anything of ours. See `envs/sandbox.py` for what is guarded and what is not.
"""

import importlib
import json
import os
import resource
import sys
from collections.abc import Callable

PLAIN = (int, float, str, bool, type(None))
MODULES = (
    *("bisect", "collections", "copy", "dataclasses", "datetime", "decimal", "enum", "fractions", "functools", "heapq"),
    *("itertools", "json", "math", "operator", "random", "re", "statistics", "string", "time", "typing"),
)
"""What the code may import: loaded beforehand where the code names it, since nothing can be read afterwards."""
NOBODY = 65534
NUM_DESCRIPTORS = 16


def limit(limits: dict) -> None:
    """Take away what the code must not have: CPU, memory, files, processes, root."""
    bounds = {
        resource.RLIMIT_CPU: limits["cpu_s"],
        resource.RLIMIT_AS: limits["memory_bytes"],
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: NUM_DESCRIPTORS,
    }
    for kind, bound in bounds.items():
        resource.setrlimit(kind, (bound, bound))
    if os.getuid() == 0:  # the limit on processes does not hold for root
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))


def refusal() -> Callable[[str, tuple], None]:
    """The audit hook: no file is opened, and nothing reaches out of the process.

    Its constant is local, out of the reach of code that changes this module's names.
    """
    refused = ("open", "os.", "subprocess.", "socket.", "ctypes.", "signal.", "shutil.", "pty.", "syslog.", "fcntl.")

    def refuse(event: str, arguments: tuple) -> None:
        if event.startswith(refused):
            raise PermissionError(f"may not use {event}")

    return refuse


def check_plain(value: object, depth: int = 0) -> None:
    """Only plain JSON values, by exact type, may leave: a subclass could say that it equals everything."""
    if depth > 20:
        raise TypeError("value is nested too deep")
    if type(value) is list:
        for item in value:
            check_plain(item, depth + 1)
    elif type(value) is dict:
        for key, item in value.items():
            if type(key) is not str:
                raise TypeError("keys must be text")
            check_plain(item, depth + 1)
    elif type(value) not in PLAIN:
        raise TypeError(f"returned a {type(value).__name__}, which is not a plain JSON value")


def compute(job: dict) -> dict:
    """Run the code and call its function on every input; what went wrong is the result where something did."""
    try:
        names: dict = {"__name__": "reply"}
        exec(compile(job["code"], "reply", "exec"), names)
        function = names.get(job["name"])
        if not callable(function):
            return {"status": "error", "detail": f"no function {job['name']}"}
        values = []
        for arguments in job["inputs"]:
            value = function(*json.loads(json.dumps(arguments)))
            check_plain(value)
            values.append(value)
        return {"status": "ok", "values": values}
    except MemoryError:
        return {"status": "memory", "detail": "memory used up"}
    except BaseException as error:
        return {"status": "error", "detail": f"{type(error).__name__}: {error}"[:200]}


def main() -> None:
    output = sys.stdout
    job = json.loads(sys.stdin.buffer.read())
    for module in MODULES:
        if module in job["code"]:
            importlib.import_module(module)
    try:
        limit(job["limits"])
    except (OSError, ValueError, OverflowError) as error:
        output.write(f"failed: limits cannot be set: {error}")
        return
    output.write("ready\n")
    output.flush()
    sys.addaudithook(refusal())
    result = json.dumps(compute(job))
    output.write("\n" + result + "\n")
    output.flush()


main()
