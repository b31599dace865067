"""Which groups are in flight, and which is handed over next? In start order, with a bound on age.

Up to P * (1 + max_staleness) groups are in flight, and they are handed over in the order in which they were started; so
a group is trained at most `max_staleness` updates after its start, and short replies are not preferred. With
`max_staleness` 0 all groups of a step are started together after the weights of that step are served.
"""

import dataclasses
import time
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any

from rl.cluster.cluster import ActorDied, wait_for
from rl.config.experiment import ExperimentConfig
from rl.data_types import Group, Outcome, Rollout, Task
from rl.engine.protocol import EngineError
from rl.rollouts.pool import WorkerPool
from rl.rollouts.worker import GroupSpec
from rl.tasks.ledger import Ledger
from rl.tasks.stream import TaskStream


@dataclasses.dataclass(slots=True)
class _Call:
    """Groups that one worker is playing."""

    worker: int
    specs: tuple[GroupSpec, ...]
    reference: Any
    num_attempts: int = 1


class Collector:
    def __init__(self, config: ExperimentConfig, pool: WorkerPool, stream: TaskStream, ledger: Ledger) -> None:
        self._config = config
        self._pool = pool
        self._stream = stream
        self._ledger = ledger
        self._calls: deque[_Call] = deque()

    def collect(self) -> list[Group]:
        """The P groups of one step, in start order. Raises `ClusterError` at train.collect_timeout_s."""
        train = self._config.train
        deadline = time.monotonic() + train.collect_timeout_s
        self._start(train.num_prompts * (1 + train.max_staleness) - self._num_in_flight)
        groups: list[Group] = []
        while len(groups) < train.num_prompts:
            groups += self._finish(self._calls.popleft(), deadline)
        return sorted(groups, key=lambda group: group.task.ordinal)

    def evaluate(self, tasks: Sequence[Task]) -> list[Group]:
        """Evaluation's groups in the order of `tasks`, played beside whatever is in flight."""
        evaluation = self._config.evaluation
        deadline = time.monotonic() + self._config.train.collect_timeout_s
        specs = [
            GroupSpec(f"{task.split}-{task.ordinal}", task, evaluation.num_samples, evaluation.temperature)
            for task in tasks
        ]
        calls = [self._submit(worker, share) for worker, share in self._deal(specs)]
        groups = [group for call in calls for group in self._finish(call, deadline)]
        return sorted(groups, key=lambda group: group.task.ordinal)

    @property
    def _num_in_flight(self) -> int:
        return sum(len(call.specs) for call in self._calls)

    def _start(self, num_groups: int) -> None:
        specs = []
        for _ in range(num_groups):
            task = self._stream.task(self._ledger.start())
            group_id = f"{self._config.seed}-{task.ordinal}"
            specs.append(GroupSpec(group_id, task, self._config.train.group_size, self._config.rollout.temperature))
        if self._config.train.max_staleness == 0:  # one call a worker: all its rollouts enter the engine together
            self._calls.extend(self._submit(worker, share) for worker, share in self._deal(specs))
        else:
            for spec in specs:
                self._calls.append(self._submit(self._least_busy(), [spec]))

    def _deal(self, specs: Sequence[GroupSpec]) -> list[tuple[int, list[GroupSpec]]]:
        """Spread groups over the workers, round robin; workers without any are left out.

        Environment by environment: one whose rollouts take long must not always meet the same worker.
        """
        shares: dict[int, list[GroupSpec]] = {}
        by_environment = sorted(specs, key=lambda spec: (spec.task.env_id, spec.task.ordinal))
        for position, spec in enumerate(by_environment):
            shares.setdefault(position % self._pool.num_workers, []).append(spec)
        return sorted(shares.items())

    def _least_busy(self) -> int:
        """The worker that plays the fewest groups."""
        num_groups = Counter(call.worker for call in self._calls)
        return min(range(self._pool.num_workers), key=lambda worker: num_groups[worker])

    def _submit(self, worker: int, specs: Sequence[GroupSpec]) -> _Call:
        return _Call(worker, tuple(specs), self._pool.play(worker, specs))

    def _finish(self, call: _Call, deadline: float) -> list[Group]:
        """Wait for the call. A worker that died, or whose engine did, is replaced and plays the groups once more."""
        while True:
            try:
                left_s = max(0.01, deadline - time.monotonic())
                return wait_for(call.reference, left_s, "collecting groups", "train.collect_timeout_s")
            except (ActorDied, EngineError) as error:
                self._pool.restart(call.worker)
                self._resubmit_others(call)
                if call.num_attempts > self._config.rollout.num_retries:
                    return [masked_group(spec, f"worker {call.worker} died: {error}") for spec in call.specs]
                call.reference = self._pool.play(call.worker, call.specs)
                call.num_attempts += 1

    def _resubmit_others(self, failed: _Call) -> None:
        """Calls that were in flight on the same worker died with it."""
        for call in self._calls:
            if call is not failed and call.worker == failed.worker:
                call.reference = self._pool.play(call.worker, call.specs)


def masked_group(spec: GroupSpec, error: str) -> Group:
    """A group that could not be played: every rollout is an infrastructure error."""
    rollouts = tuple(
        Rollout(spec.task, spec.group_id, member, (), (), None, {}, Outcome.INFRA_ERROR, error, 0, "", 1, 0.0)
        for member in range(spec.group_size)
    )
    return Group(spec.group_id, spec.task, rollouts)
