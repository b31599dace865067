"""Is the run still training the right thing? Thresholds that warn, or stop it with the reason."""

import math
from collections.abc import Sequence

from rl.config.experiment import CanaryConfig
from rl.data_types import Group, Update


class CanaryStop(RuntimeError):
    """A canary's threshold was crossed; going on would train the wrong thing."""


def check_canaries(config: CanaryConfig, groups: Sequence[Group], update: Update) -> list[str]:
    """Warnings of this step. Raises `CanaryStop` naming the canary, its value and its key."""
    for name in ("loss", "grad_norm", "mismatch"):
        if not math.isfinite(getattr(update, name) or 0.0):
            raise CanaryStop(f"{name} is {getattr(update, name)} after update {update.policy_version}")
    outcomes = [rollout.outcome for group in groups for rollout in group.rollouts]
    masked = sum(not outcome.counts for outcome in outcomes) / len(outcomes)
    if masked > config.masked_rows_stop:
        first = next(rollout for group in groups for rollout in group.rollouts if not rollout.outcome.counts)
        raise CanaryStop(
            f"{masked:.0%} of the step's rollouts did not count (canaries.masked_rows_stop is"
            f" {config.masked_rows_stop:.0%}); the first: {first.outcome}: {first.error}"
        )
    mismatch = update.mismatch or 1.0  # none: no token was sampled by the version that was trained
    if mismatch > config.mismatch_stop:
        raise CanaryStop(
            f"mismatch between learner and engine is {mismatch:.3f} (canaries.mismatch_stop is"
            f" {config.mismatch_stop:g}); they do not compute the same policy"
        )
    warnings = [_violations(groups)]
    if mismatch > config.mismatch_warn:
        warnings.append(f"mismatch {mismatch:.3f} is above canaries.mismatch_warn ({config.mismatch_warn:g})")
    return [warning for warning in warnings if warning]


def _violations(groups: Sequence[Group]) -> str:
    """What is wrong with how the engine kept the budgets; empty when nothing is."""
    found = [rollout for group in groups for rollout in group.rollouts if rollout.budget_violation]
    if not found:
        return ""
    return (
        f"the engine did not keep the thinking budget of {len(found)} rollouts; the first, {found[0].task.env_id} with"
        f" budget {found[0].task.budget}: {found[0].budget_violation}"
    )
