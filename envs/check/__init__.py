"""Does an environment keep the contract? Checks everything that training relies on.

`check_environment("me/Mine-v0")` belongs in each environment's tests; `python -m envs check ID` prints its results.
"""

from envs.check.behaviour import BEHAVIOUR_CHECKS
from envs.check.form import FORM_CHECKS
from envs.check.scoring import SCORING_CHECKS
from envs.check.subject import Check, CheckResult, Subject, run_check, skipped
from envs.check.tasks import TASK_CHECKS

CHECKS: tuple[Check, ...] = (*FORM_CHECKS, *TASK_CHECKS, *SCORING_CHECKS, *BEHAVIOUR_CHECKS)


def check_environment(env_id: str, options: dict | None = None, num_seeds: int = 20) -> list[CheckResult]:
    """The result of every check, in order. Never raises for failures of the environment."""
    subject = Subject(env_id, dict(options or {}), num_seeds)
    opened = run_check(CHECKS[0], subject)
    if opened.status == "failed":
        return [opened, *(skipped(check, "it cannot be opened") for check in CHECKS[1:])]
    return [opened, *(run_check(check, subject) for check in CHECKS[1:])]


__all__ = ["CHECKS", "CheckResult", "check_environment"]
