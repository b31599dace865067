"""What is checked, and how is a check run? The parts that all checks share."""

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from envs.check.causes import CAUSES, IN_TIME, Fault, fault_in
from envs.errors import named
from envs.messages import Message, Reply
from envs.player import Choose, play_turns
from envs.registry import make
from envs.session import Deadlines, EnvFailure, Session
from envs.text_env import StepResult, TextEnv

DEADLINES = Deadlines(reset_s=120.0, step_s=20.0)
"""How long one call may take before a check gives up on it; the first reset may load data."""
MAX_TIMEOUTS = 3
"""After this many missed deadlines the other checks are skipped, since each would wait as long."""


MAX_FAULTS = 3
"""How many different faults of one cause are told."""
Status = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of checking one clause of the contract."""

    name: str
    status: Status
    meaning: str
    remedy: str
    detail: str = ""
    """What was wrong, or why it was skipped; empty when it passed."""
    seconds: float = 0.0


class ContractError(ValueError):
    """The environment breaks its contract."""


class Skipped(Exception):
    """The clause does not apply to this environment."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What is checked: an environment, its options, and how many seeds to try."""

    env_id: str
    options: Mapping[str, Any]
    num_seeds: int
    latencies: dict[str, list[float]] = field(default_factory=lambda: {"reset": [], "step": []})
    made: list[Session] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    """What checks met that is not their own finding, each occurrence."""

    def make(self) -> Session:
        """A session of a new instance, closed when the check is over."""
        session = Session(lambda: make(self.env_id), self.env_id, DEADLINES, self.latencies)
        self.made.append(session)
        return session

    def close_all(self) -> None:
        while self.made:
            self.made.pop().close()

    def reset(self, session: Session, seed: int, split: str = "train") -> tuple[tuple[Message, ...], dict[str, Any]]:
        return session.reset(seed, {**self.options, "split": split})

    def step(self, session: Session, reply: Reply) -> StepResult:
        return session.step(reply)


Check = Callable[[Subject], None]


def run_check(check: Check, subject: Subject, *, finds_errors: bool = False) -> CheckResult:
    """The result of a check. With `finds_errors`, exceptions and wrong results that no check met before are its own."""
    if sum(fault.cause is IN_TIME for fault in subject.faults) >= MAX_TIMEOUTS:
        return skipped(check, f"{MAX_TIMEOUTS} calls missed their deadline, of {DEADLINES.step_s:g} s a step")
    name, meaning, remedy = told_of(check)
    started = time.perf_counter()
    status: Status = "passed"
    detail = ""
    try:
        check(subject)
    except Skipped as reason:
        status, detail = "skipped", str(reason)
    except ContractError as error:
        status, detail = "failed", str(error)
    except Exception as error:
        status, detail = "failed", named(error)
        if fault := fault_in(error, subject.made):
            status, detail = _met(fault, subject, finds_errors=finds_errors)
    finally:
        subject.close_all()
    return CheckResult(name, status, meaning, remedy, detail, time.perf_counter() - started)


def _met(fault: Fault, subject: Subject, *, finds_errors: bool) -> tuple[Status, str]:
    """Status and detail of a check that met the fault: its own finding, or skipped because of a cause."""
    if finds_errors and fault.cause is not IN_TIME and fault.key not in {known.key for known in subject.faults}:
        return "failed", fault.detail
    subject.faults.append(fault)
    return "skipped", f"because this failed: {fault.cause.name}"


def cause_results(subject: Subject) -> list[CheckResult]:
    """A result for each cause: failed with every different fault that checks met."""
    results = []
    for cause in CAUSES:
        details = {fault.key: fault.detail for fault in reversed(subject.faults) if fault.cause is cause}
        status = "failed" if details else "passed"
        shown = "; ".join(list(reversed(details.values()))[:MAX_FAULTS])
        results.append(CheckResult(cause.name, status, cause.meaning, cause.remedy, shown))
    return results


def skipped(check: Check, reason: str) -> CheckResult:
    name, meaning, remedy = told_of(check)
    return CheckResult(name, "skipped", meaning, remedy, reason)


def told_of(check: Check) -> tuple[str, str, str]:
    """A check's name, its meaning and the fix for what it finds, from its name and docstring."""
    meaning, _, remedy = " ".join((inspect.getdoc(check) or "").split()).partition(" To fix: ")
    return check.__name__.replace("_", " "), meaning, remedy


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ContractError(message)


def gold(session: Session, messages: Sequence[Message] = ()) -> Reply:
    """Chooses the gold reply. Raises `Skipped` for an environment that has none."""
    try:
        return session.gold_reply()
    except EnvFailure as failure:
        if isinstance(failure.error, NotImplementedError):
            raise Skipped(f"there are no gold replies: {failure.error}") from None
        raise


def play(session: Session, choose: Choose) -> tuple[float, dict[str, float]]:
    """What the replies earn from now on, and the reward's parts. Raises `ContractError` if the episode does not end."""
    before = session.reward
    most = session.env.max_turns
    has_ended, _ = play_turns(session, [], choose, most)
    require(has_ended, f"the episode was not over after max_turns ({most}) replies")
    earned = session.reward - before
    return earned, dict(session.parts) if session.parts is not None else {"reward": earned}


def floor(env: TextEnv) -> float:
    """The most that a worthless reply may earn: the bottom of the range, or 0 if the range extends below 0."""
    return max(0.0, env.reward_range[0])
