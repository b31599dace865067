"""Which faults make many checks fail at once, and where are they in the author's code?

A score function that raises fails every check that plays. Such a fault is reported once, as a clause of its own; the
checks that met it have no result and are skipped. A check that looks for errors itself (`any text can be scored`)
reports those that only it met.
"""

import inspect
from dataclasses import dataclass

from envs.errors import named, place_of
from envs.results import RangeError, ResultError
from envs.session import EnvFailure, Session, raised


@dataclass(frozen=True, slots=True)
class Cause:
    """A clause that every check tests on the way."""

    name: str
    meaning: str
    remedy: str


RAISES = Cause(
    "its code raises nothing",
    "No check met an exception of the environment's own code.",
    "fix the named line and check again: the checks that met the exception have no result yet",
)
IN_RANGE = Cause(
    "rewards stay in the declared range",
    "The rewards of an episode add up to a number in `reward_range`, which is (0, 1) unless another one is declared."
    " With tools or several turns, 0 is in the range and below its top: the total of an episode that was never scored.",
    "declare what an episode can earn at least and at most: `@scored(..., reward_range=(low, high))`, or the class"
    " attribute `reward_range`; or scale or shift the reward",
)
IN_FORM = Cause(
    "results have the right form",
    "What `reset`, `step` and the other methods return can be read: messages, finite numbers, True or False.",
    "return what the message asks for; envs/README.md describes each method",
)
IN_TIME = Cause(
    "calls end before the deadline",
    "No check gave up on a call that did not return.",
    "find what the call waits for, and give it a shorter deadline of its own",
)
CAUSES = (RAISES, IN_RANGE, IN_FORM, IN_TIME)


@dataclass(frozen=True, slots=True)
class Fault:
    """One occurrence of a cause."""

    cause: Cause
    key: str
    """Equal for occurrences of the same fault: the line that raised, or what was wrong."""
    detail: str


def fault_in(error: Exception, sessions: list[Session]) -> Fault | None:
    """The fault that ended a check with `error`; None if it is the check's own finding.

    `sessions` are those of the check; the last one is that of the environment that failed.
    """
    if not isinstance(error, EnvFailure):
        place = place_of(error)
        return Fault(RAISES, place, named(error) + place) if place else None
    inner = error.error or error.__cause__
    if error.outcome == "env_timeout":
        return Fault(IN_TIME, error.reason, error.reason)
    if isinstance(inner, ResultError):
        cause = IN_RANGE if isinstance(inner, RangeError) else IN_FORM
        task = error.where.partition(" (")[2].rstrip(")")
        where = ", ".join(filter(None, [task, scoring_place(sessions[-1]) if sessions and cause is IN_RANGE else ""]))
        return Fault(cause, cause.name, f"{error.reason} ({where})" if where else error.reason)
    if error.error is None:
        return Fault(IN_FORM, error.reason, error.reason)
    return Fault(RAISES, place_of(error.error) or error.reason, raised(error.error))


def scoring_place(session: Session) -> str:
    """`FILE:LINE` of the method or function that scores; empty if it has no source."""
    env = getattr(session.env, "inner", session.env)
    found = next((one for name in ("_score", "score", "step") if (one := getattr(env, name, None))), None)
    try:
        code = inspect.unwrap(found).__code__  # type: ignore[arg-type, union-attr]
    except AttributeError:
        return ""
    return f"{code.co_filename}:{code.co_firstlineno}"
