"""What did a check find, how grave is it, and how is it mended? A check has a deadline; its errors are findings."""

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from envs.errors import InputError, is_ours, named, place_of, told
from envs.messages import valid_text
from rl.config.errors import ConfigError
from rl.stop import StopRequested

INSTALL = "make install"
Status = Literal["ok", "warning", "failed"]
MAX_CHARACTERS = 3000
"""Maximum length of the beginning and of the end of an error: it may contain tracebacks and any text."""


@dataclass(frozen=True, slots=True)
class Finding:
    check: str
    status: Status
    found: str
    fix: str = ""
    """How to mend it; empty if nothing is to be mended or `found` says it."""
    is_configuration: bool = False
    """Whether the experiment's configuration is wrong, not the machine."""


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    find: Callable[[], Iterable[Finding]]
    timeout_s: float | None = 60.0
    """None for a check that keeps a deadline itself; it needs no thread, so it can clean up when the command stops."""


def findings_of(check: Check) -> list[Finding]:
    """What the check finds within its deadline. An error of the check is a finding that failed.

    After the deadline the check's thread is left behind: what hangs, such as a dead network disk, cannot be ended.
    """
    found: list[Finding] = []
    errors: list[BaseException] = []

    def find() -> None:
        try:
            found.extend(check.find())
        except StopRequested:
            raise
        except BaseException as error:  # of environments too, which may raise anything
            errors.append(error)

    if check.timeout_s is None:
        find()
    else:
        thread = threading.Thread(target=find, name=f"check of {check.name}", daemon=True)
        thread.start()
        thread.join(check.timeout_s)
        if thread.is_alive():
            return [
                Finding(check.name, "failed", f"no answer within {check.timeout_s:g} s", "find out what hangs here")
            ]
    return found + [finding for error in errors for finding in failures(check.name, error)]


def failures(check: str, error: BaseException) -> list[Finding]:
    """The error in findings: one a problem of a configuration."""
    if isinstance(error, ConfigError) and error.problems:
        problems = [(str(one).removesuffix(f"\n    fix: {one.fix}"), one.fix) for one in error.problems]
        return [Finding(check, "failed", shortened(wrong), fix, True) for wrong, fix in problems]
    if is_ours(error):
        return [Finding(check, "failed", shortened(told(error)), is_configuration=isinstance(error, InputError))]
    fix = INSTALL if isinstance(error, ImportError) else "this error was not foreseen: report it"
    return [Finding(check, "failed", f"{named(error)}{place_of(error)}", fix)]


def shortened(text: str) -> str:
    """Valid text of bounded length: the beginning says what failed, the end of a traceback why."""
    left_out = len(text) - 2 * MAX_CHARACTERS
    if left_out <= 0:
        return valid_text(text)
    middle = f"\n... ({left_out} characters left out)\n"
    return valid_text(text[:MAX_CHARACTERS] + middle + text[-MAX_CHARACTERS:])


def exit_code(findings: Sequence[Finding]) -> int:
    """0 nothing failed, 1 something failed, 2 the configuration is wrong."""
    failed = [finding for finding in findings if finding.status == "failed"]
    return 2 if any(finding.is_configuration for finding in failed) else int(bool(failed))
