"""What does code that a policy wrote compute, print, or pass? Runs it at the strongest level that works here.

What protects the score: only inputs go in, only values come out, and they are compared outside or, for assertions, in
another jail. Nothing that the code can read contains an expected answer.
"""

import functools
import os
from collections.abc import Sequence
from typing import Any

from envs.sandbox.jail import Jail, JailEnded
from envs.sandbox.limits import LEVELS, Level, LevelError, Limits, SandboxError, SandboxResult
from envs.sandbox.runner import pack, unpack

MAX_CODE_BYTES = 65_536
LEVEL_VARIABLE = "POLYGYM_SANDBOX_LEVEL"
"""The environment variable of the weakest level that may run anything, so that child processes have it too."""


def require_level(minimum: Level) -> None:
    """Refuse to run anything below this level, in this process and in all that it starts from now on.

    Without this call, the environment variable decides (`minimum_level`). Processes on other machines, or that were
    started before, need their own call.
    """
    os.environ[LEVEL_VARIABLE] = minimum
    level_here.cache_clear()


def minimum_level() -> Level:
    """The weakest level that may run anything: the value of `POLYGYM_SANDBOX_LEVEL`, `restricted` if it is not set.

    Raises `LevelError` if the value is not a level.
    """
    named = os.environ.get(LEVEL_VARIABLE, "restricted")
    for level in LEVELS:
        if level == named:
            return level
    raise LevelError(f"{LEVEL_VARIABLE} must be one of {', '.join(LEVELS)}, got {named!r}")


@functools.cache
def level_here() -> Level:
    """The strongest level that works here. Raises `LevelError` if that is below the required one."""
    minimum, why = minimum_level(), ""
    for level in reversed(LEVELS[LEVELS.index(minimum) :]):
        try:
            with Jail(level, Limits()):
                return level
        except SandboxError as error:
            why += f"\n  {error}"
    raise LevelError(f"no sandbox of level {minimum} or above here (try `python -m envs sandbox doctor`):{why}")


def run_function(
    code: str, name: str, inputs: Sequence[Sequence[Any]], limits: Limits | None = None, level: Level | None = None
) -> SandboxResult:
    """Run `code`, then call its function `name` once for each list of arguments in `inputs`.

    The result's value is the tuple of the calls' return values. Arguments and values are None, truth values, numbers,
    text, bytes, and lists, tuples, sets and dicts of them, by exact type. Another value is an `error`, as is any
    exception. The wall deadline covers all calls together. Raises `SandboxError`.
    """
    if too_long := _too_long(code, level):
        return too_long
    with Jail(level or level_here(), limits or Limits()) as jail:
        try:
            answer = jail.ask({"do": "define", "code": code})
            values: list[Any] = []
            for arguments in inputs:
                if answer["status"] != "ok":
                    break
                answer = jail.ask({"do": "call", "name": name, "arguments": [pack(argument) for argument in arguments]})
                values.append(answer.get("value"))
            return _from_answer(jail, answer, values)
        except JailEnded as ended:
            return _without_answer(ended)


def run_program(code: str, stdin: str = "", limits: Limits | None = None, level: Level | None = None) -> SandboxResult:
    """Run `code` as a program that reads stdin and writes stdout. Raises `SandboxError`."""
    if too_long := _too_long(code, level):
        return too_long
    with Jail(level or level_here(), limits or Limits(), stdin.encode(errors="replace")) as jail:
        try:
            return _from_answer(jail, jail.ask({"do": "program", "code": code}))
        except JailEnded as ended:  # os._exit(0) is an end like any other
            return ended.result


def run_tests(
    code: str, name: str, tests: str, limits: Limits | None = None, level: Level | None = None
) -> SandboxResult:
    """Run assertions against the function `name` of `code`; `ok` when all hold.

    `tests` defines `check(candidate)`. It runs in its own jail. There `candidate`, also under the function's own name,
    passes each call to the jail of `code`, so the code can neither see nor change the assertions. A call has positional
    and keyword arguments; its changes to lists, sets and dicts among them are copied back. If a call raises an
    exception, the nearest built-in one is raised here, so that `check` may expect it. Raises `SandboxError`.
    """
    if too_long := _too_long(code, level):
        return too_long
    level, limits = level or level_here(), limits or Limits()
    with Jail(level, limits) as candidate, Jail(level, limits) as tester:
        try:
            defined = candidate.ask({"do": "define", "code": code})
            if defined["status"] != "ok":
                return _from_answer(candidate, defined)
            answer = tester.ask({"do": "tests", "name": name, "code": tests}, may_call=True)
            while "call" in answer:
                call = {"arguments": answer["call"], "keywords": answer["keywords"], "changes": True}
                called = candidate.ask({"do": "call", "name": name, **call})
                answer = tester.ask(called, may_call=True)
        except JailEnded as ended:
            return _without_answer(ended)
        return _from_answer(candidate, answer)


class PythonSession:
    """A jailed interpreter that keeps its variables from one piece of code to the next, as a tool for a policy."""

    def __init__(self, limits: Limits | None = None, level: Level | None = None) -> None:
        self._limits = limits or Limits()
        self._level: Level = level or level_here()
        self._jail: Jail | None = None

    def run(self, code: str) -> str:
        """What the code printed, or what was wrong. If a failure ended the jail, the next call starts a new one."""
        self._jail = self._jail or Jail(self._level, self._limits)
        self._jail.restart_clock()
        try:
            answer = self._jail.ask({"do": "define", "code": code})
            printed = self._jail.take_stdout()
        except JailEnded as ended:
            self.close()
            return f"{ended.result.stdout}error: {ended.result.status}: {ended.result.detail}; all names are lost"
        return printed if answer["status"] == "ok" else f"{printed}error: {answer.get('detail', '')}"

    def close(self) -> None:
        if self._jail is not None:
            self._jail.close()
            self._jail = None


def _too_long(code: str, level: Level | None) -> SandboxResult | None:
    if len(code.encode(errors="replace")) <= MAX_CODE_BYTES:
        return None
    return SandboxResult("error", level or level_here(), detail=f"code is longer than {MAX_CODE_BYTES} bytes")


def _without_answer(ended: JailEnded) -> SandboxResult:
    """A function must answer: code that ends the process instead has failed, whatever its exit status."""
    result = ended.result
    return SandboxResult("error", result.level, detail=result.detail) if result.status == "ok" else result


def _from_answer(jail: Jail, answer: dict[str, Any], values: Sequence[Any] = ()) -> SandboxResult:
    status, detail = answer.get("status"), str(answer.get("detail", ""))
    if status not in ("ok", "error", "memory", "denied"):
        return jail.result("error", "wrote something other than an answer")
    if status != "ok":
        return jail.result(status, detail)
    try:
        return jail.result("ok", value=tuple(unpack(value) for value in values))
    except Exception as error:  # the code may have written anything
        return jail.result("error", f"wrote something other than an answer: {error}")
