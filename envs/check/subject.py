"""What is checked, and how a check is run: the parts that all checks share."""

import inspect
import os
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import gymnasium

from envs.event_loop import settle
from envs.messages import Message, Reply
from envs.registry import make
from envs.text_env import StepResult, TextEnv

OURS = Path(__file__).parents[1]
NOT_THE_AUTHORS = (
    *(str(OURS / name) for name in ("check", "registry", "text_env", "scored", "tool_class", "tools.py", "event_loop")),
    *(str(Path(module.__file__ or "").parents[up]) for module, up in ((os, 0), (gymnasium, 1))),
    "<",
)
"""Where code lies that the author of an environment did not write: the machinery, Python's library, packages."""
RAISED = "mend the line that is named; what raised is no answer to the question above"
CALL_DEADLINE_S = 20.0
"""How long one reset or step may take before a check gives up on it."""


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One clause of the contract."""

    name: str
    status: Literal["passed", "failed", "skipped"]
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
    made: list[TextEnv] = field(default_factory=list)

    def make(self) -> TextEnv:
        """A new instance, closed when the check is over."""
        self.made.append(make(self.env_id))
        return self.made[-1]

    def close_all(self) -> None:
        while self.made:
            settle(self.made.pop().close(), CALL_DEADLINE_S)

    def reset(self, env: TextEnv, seed: int, split: str = "train") -> tuple[tuple[Message, ...], dict[str, Any]]:
        options = {**self.options, "split": split}
        return self.timed("reset", lambda: env.reset(seed=seed, options=options))

    def step(self, env: TextEnv, reply: Reply) -> StepResult:
        return self.timed("step", lambda: env.step(reply))

    def timed(self, phase: str, call: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        value = settle(call(), CALL_DEADLINE_S)
        self.latencies[phase].append(time.perf_counter() - started)
        return value


Check = Callable[[Subject], None]
Choose = Callable[[TextEnv], Reply]


def run_check(check: Check, subject: Subject) -> CheckResult:
    name, meaning, remedy = told_of(check)
    started = time.perf_counter()
    status, detail = "passed", ""
    try:
        try:
            check(subject)
        finally:
            subject.close_all()
    except Skipped as reason:
        status, detail = "skipped", str(reason)
    except ContractError as error:
        status, detail = "failed", str(error)
    except Exception as error:
        status, detail, remedy = "failed", f"{type(error).__name__}: {error}{place_of(error)}", RAISED
    return CheckResult(name, status, meaning, remedy, detail, time.perf_counter() - started)


def skipped(check: Check, reason: str) -> CheckResult:
    name, meaning, remedy = told_of(check)
    return CheckResult(name, "skipped", meaning, remedy, reason)


def told_of(check: Check) -> tuple[str, str, str]:
    """A check's name, what it means and how to mend what it finds, from its name and docstring."""
    meaning, _, remedy = " ".join((inspect.getdoc(check) or "").split()).partition(" To mend: ")
    return check.__name__.replace("_", " "), meaning, remedy


def place_of(error: BaseException) -> str:
    """The innermost line of the author's code that led to the error, where there is one."""
    frames: list[traceback.FrameSummary] = []
    cause: BaseException | None = error
    while cause is not None:
        frames += traceback.extract_tb(cause.__traceback__)
        cause = cause.__cause__
    own = [frame for frame in frames if not frame.filename.startswith(NOT_THE_AUTHORS)]
    return f" ({own[-1].filename}:{own[-1].lineno})" if own else ""


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ContractError(message)


def gold(env: TextEnv) -> Reply:
    """The gold reply. Raises `Skipped` for an environment that has none."""
    try:
        return env.gold_reply()
    except NotImplementedError as error:
        raise Skipped(f"there are no gold replies: {error}") from None


def saying(text: str) -> Choose:
    return lambda env: Reply(text)


def play(subject: Subject, env: TextEnv, choose: Choose) -> tuple[float, dict[str, float]]:
    """Sum of rewards and the parts of the last step, for an episode that was reset. Raises `ContractError`."""
    total = 0.0
    for _ in range(env.max_turns):
        messages, reward, terminated, truncated, info = subject.step(env, choose(env))
        require(isinstance(messages, tuple), f"step gave messages of type {type(messages).__name__}, not a tuple")
        total += reward
        if terminated or truncated:
            return total, info.get("reward_parts", {"reward": total})
    raise ContractError(f"the episode was not over after max_turns ({env.max_turns}) replies")


def floor(env: TextEnv) -> float:
    """What a worthless reply may earn: the bottom of the range, or 0 where the range goes below it."""
    return max(0.0, env.reward_range[0])
