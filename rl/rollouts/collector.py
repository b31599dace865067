"""How are groups collected: how many are in flight, and in which order are they handed over?

Up to P * (1 + max_staleness) groups are in flight (`rl.rollouts.admission`). They are handed over in start order, so a
group is trained at most `max_staleness` updates after its start, and short replies are not preferred. With
`max_staleness` 0 all groups of a step are started together, after the weights of that step are served.

A group that was kept when the run broke off (`rl.runs.spool`) is handed over in its turn, without being played again.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

from rl.algorithms.shaping import with_signal
from rl.cluster.actors import Deadline
from rl.config.experiment import ExperimentConfig
from rl.data_types import Group, Task
from rl.rollouts.admission import Admission
from rl.rollouts.course import Course
from rl.rollouts.plays import Play
from rl.rollouts.pool import WorkerPool
from rl.rollouts.worker import GroupSpec, Keeper
from rl.tasks.ledger import Ledger
from rl.tasks.stream import TaskStream


class Collector:
    def __init__(
        self,
        config: ExperimentConfig,
        pool: WorkerPool,
        stream: TaskStream,
        ledger: Ledger,
        keeper_of: Callable[[Task], Keeper | None] = lambda task: None,
        course: Course | None = None,
    ) -> None:
        self._config = config
        self._pool = pool
        self._stream = stream
        self._ledger = ledger
        self._keeper_of = keeper_of
        self._course = course or Course()
        self._plays: deque[Play | Group] = deque()
        """In start order; a group in place of a play was kept."""
        train = config.train
        self._admission = Admission(train.num_prompts, train.max_staleness, train.max_sampling_rounds)
        self._handed_over_at: float | None = None

    @property
    def num_in_flight(self) -> int:
        """Groups that are in flight when a step's are collected, these included."""
        return self._admission.num_in_flight

    def collect(self) -> list[Group]:
        """The groups of one step, in start order: P, and more if `train.max_sampling_rounds` lets it look for groups
        with a signal. Raises `ClusterError` when a round takes longer than train.collect_timeout_s.
        """
        begun = time.monotonic()
        self._pool.wait_until_loaded()  # first: nothing is trained or started if an engine loaded other weights
        self._start(self.num_in_flight - sum(1 if isinstance(one, Group) else one.num_groups for one in self._plays))
        num_prompts = self._config.train.num_prompts
        groups = self._hand_over(num_prompts)
        for _ in range(1, self._config.train.max_sampling_rounds):
            num_missing = num_prompts - len(with_signal(groups, self._config.shapings))
            if num_missing <= 0:
                break
            num_more = min(num_prompts, num_missing * len(groups) // max(1, num_prompts - num_missing))
            if self._config.train.max_staleness == 0:
                self._start(num_more)
            groups += self._hand_over(num_more)
        now = time.monotonic()
        if self._handed_over_at is not None:  # the first step also starts engines and environments
            self._admission.follow(now - begun, now - self._handed_over_at)
        self._handed_over_at = now
        return sorted(groups, key=lambda group: group.task.ordinal)

    def _hand_over(self, num: int) -> list[Group]:
        """At least so many groups, or all that were started, in start order."""
        deadline = self._deadline()
        groups: list[Group] = []
        while len(groups) < num and self._plays:
            first = self._plays[0]
            ended = [first] if isinstance(first, Group) else self._pool.collect(first, deadline)
            deadline = _still_open(deadline)
            self._plays.popleft()
            self._ledger.play(group.task.ordinal for group in ended)
            groups += ended
        return groups

    def evaluate(self, tasks: Sequence[Task], *, at_once: bool = False) -> Iterator[list[Group]]:
        """The groups of an evaluation in the order of `tasks`, played alongside the groups in flight.

        They are played in rounds of as many rollouts as the engines can sample at once. Each round has the deadline
        train.collect_timeout_s, because an evaluation of many tasks may legitimately take long. Each begins when its
        groups are asked for; with `at_once` all begin with this call, and go on while the caller does other things.
        """
        self._pool.wait_until_loaded()
        evaluation, rollout = self._config.evaluation, self._config.rollout
        assert evaluation.temperature is not None  # the experiment gives it that of `rollout`
        specs = [
            GroupSpec(f"{task.split}-{task.ordinal}", task, evaluation.num_samples, evaluation.temperature)
            for task in tasks
        ]
        num_at_once = max(1, rollout.max_in_flight * rollout.num_workers // evaluation.num_samples)
        shares = (self._deal(specs[first : first + num_at_once]) for first in range(0, len(specs), num_at_once))
        rounds = ([self._pool.play(worker, share) for worker, share in dealt] for dealt in shares)
        return self._ended(list(rounds) if at_once else rounds)

    def _ended(self, rounds: Iterable[Sequence[Play]]) -> Iterator[list[Group]]:
        for plays in rounds:
            deadline, groups = self._deadline(), list[Group]()
            for play in plays:
                groups += self._pool.collect(play, deadline)
                deadline = _still_open(deadline)
            yield sorted(groups, key=lambda group: group.task.ordinal)

    def _deadline(self) -> Deadline:
        return Deadline(self._config.train.collect_timeout_s, "collecting groups", "train.collect_timeout_s")

    def _start(self, num_groups: int) -> None:
        if self._config.train.max_staleness == 0:  # one call per worker: all its rollouts enter the engine together
            specs = [self._next_spec() for _ in range(num_groups)]
            self._plays.extend(self._pool.play(worker, share) for worker, share in self._deal(specs))
            return
        recorded = self._course.starts()
        ordinals: list[int] = []
        workers: list[int | None] = []
        for index in range(num_groups if recorded is None else len(recorded)):
            spec = self._next_spec()
            worker = None
            if kept := spec.kept():
                self._ledger.play([spec.task.ordinal])
            else:
                worker = self._pool.least_busy() if recorded is None else recorded[index] or 0
            self._plays.append(kept or self._pool.play(worker or 0, [spec]))
            ordinals.append(spec.task.ordinal)
            workers.append(worker)
        self._course.started(ordinals, workers)

    def _next_spec(self) -> GroupSpec:
        task = self._stream.start(self._ledger.start())
        group_id = f"{self._config.seed}-{task.ordinal}"
        size, temperature = self._config.train.group_size, self._config.rollout.temperature
        return GroupSpec(group_id, task, size, temperature, self._keeper_of(task))

    def _deal(self, specs: Sequence[GroupSpec]) -> list[tuple[int, list[GroupSpec]]]:
        """Distribute groups over the workers, round robin; workers without groups are omitted.

        Groups are sorted by environment first, so that a slow environment is spread over all workers.
        """
        shares: dict[int, list[GroupSpec]] = {}
        by_environment = sorted(specs, key=lambda spec: (spec.task.env_id, spec.task.ordinal))
        for position, spec in enumerate(by_environment):
            shares.setdefault(position % self._pool.num_workers, []).append(spec)
        return sorted(shares.items())


def _still_open(deadline: Deadline) -> Deadline:
    """For the next groups: one that has passed was renewed for groups that were played again, which cost no others."""
    return deadline if deadline.left_s else deadline.renewed()
