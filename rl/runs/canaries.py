"""Is the run still training the right thing? Canaries are thresholds that warn, or stop the run with a reason."""

import math
from collections.abc import Sequence

from rl.config.experiment import CanaryConfig
from rl.data_types import Group, Outcome, Rollout, Update


class CanaryStop(RuntimeError):
    """A canary's threshold was exceeded; continuing would train the wrong thing."""

    exit_code = 3
    headline = "stopped by a canary, a threshold of the section canaries"


def check_groups(config: CanaryConfig, groups: Sequence[Group]) -> list[str]:
    """Warnings about groups before they are trained. Raises `CanaryStop`, which names canary, value and key."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    lost = [rollout for rollout in rollouts if not rollout.outcome.counts]
    if len(lost) / len(rollouts) > config.masked_rows_stop:
        raise CanaryStop(
            f"{len(lost) / len(rollouts):.0%} of the step's rollouts did not count (canaries.masked_rows_stop is"
            f" {config.masked_rows_stop:.0%}); the first: {lost[0].outcome}: {lost[0].error}"
        )
    return [*_truncations(config, rollouts), *_violations(rollouts)]


def check_update(config: CanaryConfig, update: Update) -> list[str]:
    """Warnings about an update before its weights are served. Raises `CanaryStop`, naming canary, value and key."""
    for name in ("loss", "grad_norm", "mismatch"):
        if not math.isfinite(getattr(update, name) or 0.0):
            raise CanaryStop(f"{name} is {getattr(update, name)} after update {update.policy_version}")
    mismatch = update.mismatch or 1.0  # None: the trained version sampled no token
    if mismatch > config.mismatch_stop:
        raise CanaryStop(
            f"mismatch between learner and engine is {mismatch:.3f} (canaries.mismatch_stop is"
            f" {config.mismatch_stop:g}); they do not compute the same policy"
        )
    if mismatch > config.mismatch_warn:
        return [f"mismatch {mismatch:.3f} is above canaries.mismatch_warn ({config.mismatch_warn:g})"]
    return []


def _truncations(config: CanaryConfig, rollouts: Sequence[Rollout]) -> list[str]:
    share = sum(rollout.outcome == Outcome.TRUNCATED for rollout in rollouts) / len(rollouts)
    if share <= config.truncated_warn:
        return []
    return [
        f"{share:.0%} of the step's rollouts were cut off (canaries.truncated_warn is {config.truncated_warn:.0%});"
        " raise rollout.max_reply_tokens or policy.max_tokens, or lower the thinking budget"
    ]


def _violations(rollouts: Sequence[Rollout]) -> list[str]:
    """Warnings about thinking budgets that the engine violated."""
    found = [rollout for rollout in rollouts if rollout.budget_violation]
    if not found:
        return []
    return [
        f"the engine violated the thinking budget of {len(found)} rollouts; the first, {found[0].task.env_id} with"
        f" budget {found[0].task.budget}: {found[0].budget_violation}"
    ]
