"""What does a function that a policy wrote return? Runs it in a process of its own, with limits, and gives its values.

What holds the code: resource limits (CPU, memory, file size, processes), a wall deadline, a session of its own that is
killed as a whole, an empty environment, `python -I -S`, no rights of root where this process has them, and an audit
hook that refuses files, processes, signals, sockets and native calls; a score of harmless modules can be imported. This
stops accidents and what a policy comes upon in training. It is no wall against a determined attacker, who needs a
container or a virtual machine around the whole worker.

What holds the score: only inputs go in, only JSON values come out, and they are compared out here.
"""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Status = Literal["ok", "error", "timeout", "memory", "output_limit"]
RUNNER = Path(__file__).with_name("sandbox_runner.py").read_text()
READY = b"ready\n"
MAX_CODE_BYTES = 8_192  # as JSON, with the inputs, it fits into a pipe of 64 KiB, so that writing never blocks


class SandboxError(RuntimeError):
    """The sandbox itself failed: no process, no memory to start one. Never the policy's doing."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one run, over all inputs together. The wall deadline counts from when the code starts."""

    cpu_s: int = 1
    wall_s: float = 5.0
    memory_bytes: int = 256 * 1024**2
    output_bytes: int = 65_536
    start_s: float = 15.0
    """How long the process may take to start, on a busy machine; more is a failure of the sandbox."""


@dataclass(frozen=True, slots=True)
class SandboxResult:
    """`values` has one JSON value an input when `status` is `ok`, else it is empty; `detail` says what happened."""

    status: Status
    values: tuple[Any, ...] = ()
    detail: str = ""


def run_function(code: str, name: str, inputs: Sequence[Sequence[Any]], limits: Limits | None = None) -> SandboxResult:
    """Run `code`, then call its function `name` once for each list of arguments in `inputs`.

    Arguments are JSON values. A value that is not plain JSON (by exact type) is an `error`, as is any exception,
    `SystemExit` included. Raises `SandboxError` when no process could be started.
    """
    limits = limits or Limits()
    if len(code.encode(errors="replace")) > MAX_CODE_BYTES:
        return SandboxResult("error", detail=f"code is longer than {MAX_CODE_BYTES} bytes")
    job = json.dumps({"code": code, "name": name, "inputs": list(map(list, inputs)), "limits": asdict(limits)})
    process = start(job)
    try:
        output, ended = read_output(process, limits)
        return_code = process.wait(timeout=limits.start_s) if ended == "closed" else None
    except subprocess.TimeoutExpired:  # closed its output and lives on
        return SandboxResult("timeout", detail="closed its output and did not end")
    finally:
        kill_session(process)
    if not output.startswith(READY):
        said = output.decode(errors="replace")[:500]
        raise SandboxError(f"the process did not get ready: {said or ended}, exit status {return_code}")
    if ended != "closed":
        return SandboxResult("timeout" if ended == "deadline" else "output_limit", detail=ended)
    return read_result(output, return_code, len(inputs))


def start(job: str) -> subprocess.Popen[bytes]:
    """Start the runner and hand it the job. Raises `SandboxError`."""
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", "-c", RUNNER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={},
            cwd="/",
            start_new_session=True,
        )
    except OSError as error:
        raise SandboxError(f"no process could be started: {error}") from error
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it died already; reading its output will tell
        process.stdin.write(job.encode(errors="replace"))
        process.stdin.close()
    return process


def read_output(process: subprocess.Popen[bytes], limits: Limits) -> tuple[bytes, str]:
    """What the process wrote, and why reading ended: `closed`, `deadline` or `output limit`."""
    assert process.stdout is not None
    output, deadline = b"", time.monotonic() + limits.start_s
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while (left_s := deadline - time.monotonic()) > 0:
            if not selector.select(left_s):
                continue
            chunk = os.read(process.stdout.fileno(), 65_536)
            if not chunk:
                return output, "closed"
            if not output:
                deadline = time.monotonic() + limits.wall_s
            output += chunk
            if len(output) > limits.output_bytes:
                return output, "output limit"
    return output, "deadline"


def kill_session(process: subprocess.Popen[bytes]) -> None:
    """Kill the process and everything it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def read_result(output: bytes, return_code: int | None, num_inputs: int) -> SandboxResult:
    """The result that the runner wrote as the last line; without one, the exit status tells what happened."""
    if return_code in (-signal.SIGXCPU, -signal.SIGKILL):
        return SandboxResult("timeout", detail="CPU time used up")
    try:
        result = json.loads(output.splitlines()[-1])
    except (ValueError, RecursionError):
        return SandboxResult("error", detail=f"ended without a result, exit status {return_code}")
    if not isinstance(result, Mapping) or result.get("status") not in ("ok", "error", "memory"):
        return SandboxResult("error", detail="wrote something else than a result")
    values = result.get("values")
    if result["status"] != "ok":
        return SandboxResult(result["status"], detail=str(result.get("detail", ""))[:500])
    if not isinstance(values, list) or len(values) != num_inputs:
        return SandboxResult("error", detail="wrote another number of values than there were inputs")
    return SandboxResult("ok", tuple(values))
