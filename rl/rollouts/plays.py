"""Which groups does a worker play, which of them have ended, and what is a group that could not be played?"""

from dataclasses import dataclass, field

from rl.cluster.actors import Pending
from rl.data_types import Group, Outcome, Rollout
from rl.rollouts.worker import GroupSpec, Played


@dataclass(eq=False, slots=True)
class Part:
    """Groups that are handed to a worker in one call."""

    worker: int
    specs: tuple[GroupSpec, ...]
    num_deaths: int = 0
    """Workers that died while they played these groups."""
    pending: Pending[Played] | None = None
    """None until it is handed to the worker."""
    groups: list[Group] | None = None
    """None until it has ended."""

    @property
    def is_suspect(self) -> bool:
        return self.num_deaths > 0 and self.groups is None


@dataclass(eq=False, slots=True)
class Play:
    """Groups that one worker plays; `WorkerPool.collect` waits for them."""

    parts: list[Part] = field(default_factory=list)

    @property
    def num_groups(self) -> int:
        return sum(len(part.specs) for part in self.parts)


def masked_group(spec: GroupSpec, error: str) -> Group:
    """A group that could not be played: every rollout is an infrastructure error."""
    rollouts = tuple(
        Rollout(
            task=spec.task,
            group_id=spec.group_id,
            member=member,
            turns=(),
            messages=(),
            reward=None,
            reward_parts={},
            outcome=Outcome.INFRA_ERROR,
            error=error,
            malformed_calls={},
            budget_violation="",
            num_attempts=1,
            seconds=0.0,
        )
        for member in range(spec.group_size)
    )
    return Group(spec.group_id, spec.task, rollouts)
