"""How is a jailed interpreter started, driven and killed from outside the sandbox?

A `Jail` gets one request after another and must answer each in time. If it does anything else, such as flooding its
output, ending or closing its pipes, that becomes a `JailEnded` with the result. Closing a jail kills it.
"""

import contextlib
import dataclasses
import json
import os
import selectors
import signal
import time
from collections.abc import Mapping
from typing import Any

from envs.sandbox.forking import ZYGOTES
from envs.sandbox.limits import Level, Limits, SandboxError, SandboxResult, Status

PIPES = ("stdin", "stdout", "stderr", "requests", "answers", "status", "lifeline")
END_S = 10.0
"""How long a killed jail may take to end."""
SIGNALS = {number.value: number.name for number in signal.Signals}
CPU_TOLERANCE = 0.9
"""The kernel's CPU limit and its usage report differ by some milliseconds."""


class JailEnded(Exception):
    """The jail takes no more requests; `result` says how it ended."""

    def __init__(self, result: SandboxResult) -> None:
        super().__init__(f"{result.status}: {result.detail}")
        self.result = result


class Jail:
    """One jailed interpreter. Use it in a `with` statement, whose end kills everything that runs in the jail.

    Raises `SandboxError` if no jail of exactly this level can be made.
    """

    def __init__(self, level: Level, limits: Limits, stdin: bytes = b"") -> None:
        self._level: Level = level
        self._limits = limits
        self._selector = selectors.DefaultSelector()
        self._read = {name: bytearray() for name in ("stdout", "stderr", "answers", "status")}
        self._unwritten = {"stdin": bytearray(stdin), "requests": bytearray(), "lifeline": bytearray()}
        self._descriptors: dict[str, int] = {}
        self._deadline: float | None = None
        theirs: list[int] = []
        try:
            for name in PIPES:
                theirs.append(self._open(name))
            ZYGOTES["isolated" if level == "isolated" else "other"].submit(
                {"level": level, "limits": dataclasses.asdict(limits)}, theirs, limits.start_s
            )
        except OSError as error:
            self._close_all()
            raise SandboxError(f"no pipes for a jail: {error}") from error
        except BaseException:
            self._close_all()
            raise
        finally:
            # Before waiting for the first answer: if we held the jail's ends, its death would not close the pipes.
            for descriptor in theirs:
                os.close(descriptor)
        begun_s = time.monotonic()
        try:
            self._answer(begun_s + limits.start_s)
        except (JailEnded, SandboxError) as error:
            self._close_all()
            is_late = time.monotonic() - begun_s >= limits.start_s
            why = f"none within {limits.start_s} s" if is_late else error
            raise SandboxError(f"no jail of level {level} could be made: {why}") from None

    def __enter__(self) -> "Jail":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:  # a caller that forgets `close` must not keep the jail's processes alive
        with contextlib.suppress(Exception):
            self._close_all()

    def ask(self, request: Mapping[str, Any], may_call: bool = False) -> dict[str, Any]:
        """The answer to one request. The wall deadline covers all requests together. Raises `JailEnded`.

        An answer has a `status`; with `may_call` it may be a `call` of the candidate instead.
        """
        self._deadline = self._deadline or time.monotonic() + self._limits.wall_s
        self._unwritten["requests"] += json.dumps(request).encode(errors="replace") + b"\n"
        self._watch_writing("requests")
        answer = self._answer(self._deadline)
        if isinstance(answer.get("status"), str) or (may_call and isinstance(answer.get("call"), list)):
            return answer
        raise JailEnded(self.result("error", "wrote something other than an answer"))

    def restart_clock(self) -> None:
        """Restart the wall deadline at the next request."""
        self._deadline = None

    def take_stdout(self) -> str:
        """Text printed since the last call, including everything printed before the last answer."""
        while any(key.data == "stdout" for key, _ in self._selector.select(0)):
            self._read_some("stdout")
            if len(self._read["stdout"]) > self._limits.output_bytes:
                raise JailEnded(self.result("output_limit", f"more than {self._limits.output_bytes} bytes of stdout"))
        printed = self._read["stdout"].decode(errors="replace")
        self._read["stdout"].clear()
        return printed

    def result(self, status: Status, detail: str = "", value: Any = None) -> SandboxResult:
        """Kill the jail, and return its output so far as a result."""
        self.close()  # before reading the report, which the supervisor writes when the jail has ended
        report = self._report()
        stdout, stderr = (bytes(self._read[name][: self._limits.output_bytes]) for name in ("stdout", "stderr"))
        return SandboxResult(
            status=status,
            level=self._level,
            value=value,
            detail=detail,
            stdout=stdout.decode(errors="replace"),
            stderr=stderr.decode(errors="replace"),
            cpu_s=float(report.get("cpu_s", 0.0)),
            max_rss_bytes=int(report.get("max_rss_bytes", 0)),
        )

    def close(self) -> None:
        """Kill the jail by closing its lifeline, and wait until all of its processes have ended."""
        # The lifeline first: if the code saw the end of its requests before, it could still run on its way out.
        for name in ("lifeline", "requests", "stdin"):
            self._shut(name)
        # Keep reading until all pipes are closed, that is, until every process of the jail has ended.
        deadline = time.monotonic() + END_S
        while self._descriptors and (left_s := deadline - time.monotonic()) > 0:
            for key, _ in self._selector.select(left_s):
                self._read_some(key.data, keep=len(self._read[key.data]) <= self._limits.output_bytes)
        is_gone = "status" not in self._descriptors
        self._close_all()
        if not is_gone:
            raise SandboxError(f"a killed jail was not gone after {END_S} s")

    def _open(self, name: str) -> int:
        """Make a pipe, keep our end and give theirs."""
        reading, writing = os.pipe()
        ours, theirs = (writing, reading) if name in self._unwritten else (reading, writing)
        os.set_blocking(ours, False)
        self._descriptors[name] = ours
        if name in self._read:
            self._selector.register(ours, selectors.EVENT_READ, name)
        elif name == "stdin":
            self._watch_writing(name)
        return theirs

    def _shut(self, name: str) -> None:
        descriptor = self._descriptors.pop(name, None)
        if descriptor is not None:
            with contextlib.suppress(KeyError):
                self._selector.unregister(descriptor)
            os.close(descriptor)

    def _close_all(self) -> None:
        for name in list(self._descriptors):
            self._shut(name)
        self._selector.close()

    def _watch_writing(self, name: str) -> None:
        if name in self._descriptors and self._descriptors[name] not in self._selector.get_map():
            self._selector.register(self._descriptors[name], selectors.EVENT_WRITE, name)

    def _answer(self, deadline: float) -> dict[str, Any]:
        """The next line of answers. Raises `JailEnded` if there is none."""
        while b"\n" not in self._read["answers"]:
            if "status" not in self._descriptors:
                raise JailEnded(self._ended())
            self._move_bytes(deadline)
        line, _, rest = self._read["answers"].partition(b"\n")
        self._read["answers"] = rest
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise JailEnded(self.result("error", "wrote something other than an answer"))
        return answer

    def _move_bytes(self, deadline: float) -> None:
        """Wait until a pipe can be read or written, and do it. Raises `JailEnded` at a limit."""
        left_s = deadline - time.monotonic()
        ready = self._selector.select(max(0.0, left_s))
        # Select before looking at the deadline: bytes that arrived in time count, however late this process looks.
        if not ready and left_s <= 0:
            raise JailEnded(self.result("timeout", f"not done within {self._limits.wall_s} s"))
        for key, _ in ready:
            if key.data in self._unwritten:
                self._write(key.data)
                continue
            self._read_some(key.data)
            if len(self._read[key.data]) > self._limits.output_bytes:
                limit = f"more than {self._limits.output_bytes} bytes of {key.data}"
                raise JailEnded(self.result("output_limit", limit))

    def _write(self, name: str) -> None:
        """Write some bytes. After the last one, or if nobody reads them, close stdin or stop watching requests."""
        unwritten = self._unwritten[name]
        try:
            del unwritten[: os.write(self._descriptors[name], unwritten[:65_536]) if unwritten else 0]
        except BrokenPipeError:
            unwritten.clear()
        if not unwritten:
            self._shut(name) if name == "stdin" else self._selector.unregister(self._descriptors[name])

    def _read_some(self, name: str, keep: bool = True) -> None:
        chunk = os.read(self._descriptors[name], 65_536)
        if not chunk:
            self._shut(name)
        elif keep:
            self._read[name] += chunk

    def _report(self) -> dict[str, Any]:
        """The supervisor's report about the jail's end: its first line."""
        line = bytes(self._read["status"]).split(b"\n")[0]
        return json.loads(line) if line else {}

    def _ended(self) -> SandboxResult:
        """The result of a jail that ended without an answer."""
        report = self._report()
        if "exit" not in report:
            raise SandboxError(report.get("failed", "the process that supervises the jail died"))
        code, cpu_s = report["exit"], report["cpu_s"]
        if code in (-signal.SIGKILL, -signal.SIGXCPU) and cpu_s >= CPU_TOLERANCE * self._limits.cpu_s:
            return self.result("timeout", f"used its {self._limits.cpu_s} s of CPU time")
        if code == -signal.SIGKILL and self._level != "process":  # no code in there may send signals
            raise SandboxError("the jail was killed from outside, such as by the kernel when memory ran out")
        if code < 0:
            return self.result("killed", f"killed by {SIGNALS.get(-code, f'signal {-code}')}")
        return self.result("ok" if code == 0 else "error", f"ended with exit status {code}")
