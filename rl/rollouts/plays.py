"""Which groups does a worker play, which of them have ended, and what is a group that could not be played?"""

import time
from dataclasses import dataclass

from rl.cluster.actors import Deadline, Pending
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
    def name(self) -> str:
        """The id of its first group."""
        return self.specs[0].group_id

    def take_kept(self) -> bool:
        """Take the groups from where they were kept; False if one was not."""
        kept = [group for spec in self.specs if (group := spec.kept())]
        if len(kept) < len(self.specs):
            return False
        self.groups = kept
        return True

    def after_death(self, error: Exception, num_tries: int, is_synchronous: bool) -> list["Part"]:
        """What takes its place when its worker has died: its groups together, if that keeps the run's bits, then one at
        a time, so that the cause is known, and after so many tries masked groups.
        """
        num_deaths = self.num_deaths + 1
        if num_deaths >= num_tries:
            reason = f"{num_deaths} workers died while they played it, the last of: {error}"
            self.groups = [masked_group(spec, reason) for spec in self.specs]
            return [self]
        if num_deaths == 1 and is_synchronous:
            return [Part(self.worker, self.specs, num_deaths)]
        return [Part(self.worker, (spec,), num_deaths) for spec in self.specs]

    def waited_for(self, deadline: Deadline) -> str:
        """Who waits for what, since this deadline began."""
        env_ids = ", ".join(sorted({spec.task.env_id for spec in self.specs}))
        return (
            f"{deadline.what} has waited {time.monotonic() - deadline.started:.0f} s for {len(self.specs)} groups"
            f" ({env_ids}; the first is {self.name}) of worker {self.worker}"
        )

    @property
    def is_suspect(self) -> bool:
        return self.num_deaths > 0 and self.groups is None


@dataclass(eq=False, slots=True)
class Play:
    """Groups that one worker plays; `WorkerPool.collect` waits for them."""

    parts: list[Part]
    """At least one."""

    @property
    def worker(self) -> int:
        return self.parts[0].worker

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
