"""Does an environment keep the contract? Checks everything that training relies on.

`check_environment("me/Mine-v0")` belongs in each environment's tests; `python -m envs check ID` prints its results.
"""

from envs.check.behaviour import (
    BEHAVIOUR_CHECKS,
    any_text_can_be_scored,
    close_may_be_called_twice,
    wrong_tool_calls_come_back_as_text,
)
from envs.check.causes import CAUSES
from envs.check.form import FORM_CHECKS, a_pickled_copy_plays_on, an_unknown_option_is_refused
from envs.check.scoring import SCORING_CHECKS, a_group_is_scored_member_by_member
from envs.check.subject import Check, CheckResult, Subject, cause_results, run_check, skipped
from envs.check.tasks import TASK_CHECKS, episodes_at_once_do_not_meet

CHECKS: tuple[Check, ...] = (*FORM_CHECKS, *TASK_CHECKS, *SCORING_CHECKS, *BEHAVIOUR_CHECKS)


NUM_CLAUSES = len(CHECKS) + len(CAUSES)
FIND_ERRORS: frozenset[Check] = frozenset(
    {
        CHECKS[0],
        an_unknown_option_is_refused,
        a_pickled_copy_plays_on,
        episodes_at_once_do_not_meet,
        a_group_is_scored_member_by_member,
        any_text_can_be_scored,
        wrong_tool_calls_come_back_as_text,
        close_may_be_called_twice,
    }
)
"""Checks that provoke errors in a way of their own; their remedies say how to mend one that only they met."""


def check_environment(env_id: str, options: dict | None = None, num_seeds: int = 20) -> list[CheckResult]:
    """The result of every clause: of the first check, of the causes that fail many checks at once, of the other checks.

    Never raises for failures of the environment.
    """
    subject = Subject(env_id, dict(options or {}), num_seeds)
    opened = run_check(CHECKS[0], subject, finds_errors=True)
    if opened.status != "passed":
        return [opened, *(skipped(check, "it cannot be opened") for check in CHECKS[1:])]
    others = [run_check(check, subject, finds_errors=check in FIND_ERRORS) for check in CHECKS[1:]]
    return [opened, *cause_results(subject), *others]


__all__ = ["NUM_CLAUSES", "CheckResult", "check_environment"]
