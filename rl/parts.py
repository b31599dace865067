"""Which parts does a run have, and how are they started, started again after a failure, and stopped?

Engines serve for the whole run. Learner, ledger, canaries and tracker begin anew when the learner dies: from the newest
checkpoint, as with --resume.
"""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from rl.checks import check_room, store_bytes
from rl.cluster.actors import ActorDied, DeadlinePassed
from rl.cluster.address import ClusterError
from rl.cluster.cluster import Joined, cluster
from rl.cluster.reserve import wait_until_living
from rl.config.experiment import ExperimentConfig
from rl.data_types import Group
from rl.engine.work_times import Interval
from rl.learner.group import LearnerGroup
from rl.policy_checks import check_teachers
from rl.rollouts.collector import Collector
from rl.rollouts.judge import served_judge
from rl.rollouts.pool import WorkerPool
from rl.rollouts.teachers import TeacherPool
from rl.runs.canaries import Canaries
from rl.runs.checkpoint import Checkpoint
from rl.runs.display import Display
from rl.runs.folder import RunFolder
from rl.runs.recording import Recording
from rl.runs.saved_groups import SavedGroups
from rl.runs.spool import Spool
from rl.runs.step_times import StepTimes
from rl.runs.tracker import Tracker
from rl.stop import handled_signals
from rl.supervised import supervised_stage
from rl.tasks.ledger import Ledger
from rl.tasks.stream import TaskStream
from rl.weights.source import WeightsLost

logger = logging.getLogger(__name__)


class LearnerDied(ClusterError):
    """A process of the learner is lost, and with it what was trained since the newest checkpoint."""


class Evaluation(NamedTuple):
    """An evaluation of the policy after so many steps, whose groups are being played."""

    label: str
    step: int
    rounds: Iterator[list[Group]]


@dataclass(slots=True)
class Parts:
    """The parts and the state of the training loop."""

    config: ExperimentConfig
    folder: RunFolder
    learner: LearnerGroup
    pool: WorkerPool
    teachers: TeacherPool
    collector: Collector | SavedGroups
    stream: TaskStream
    ledger: Ledger
    spool: Spool
    canaries: Canaries
    tracker: Tracker
    display: Display
    step: int
    """Updates so far; also the served policy version."""
    is_consistent: bool = True
    """Whether weights and ledger are of the same step; False between an update and its bookkeeping."""
    times: StepTimes = field(default_factory=StepTimes)
    """The phases since the last step's metrics."""
    evaluation: "Evaluation | None" = None
    """What is being played."""
    saving: Future[tuple[Checkpoint, Interval]] | None = None
    """The checkpoint that is being written, and from when to when that took."""
    recording: Recording = field(default_factory=Recording)

    @property
    def last_step(self) -> int:
        """Updates after which the loop ends."""
        last = self.recording.last_step
        return self.config.train.num_steps if last is None else last

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self.display.phase(name)
        with self.times.phase(name):
            yield


@dataclass(frozen=True, slots=True)
class Served:
    """What lasts for the whole run."""

    config: ExperimentConfig
    folder: RunFolder
    policy_path: Path
    """The policy that reinforcement learning starts from."""
    joined: Joined
    pool: WorkerPool
    teachers: TeacherPool


@contextlib.contextmanager
def engines(config: ExperimentConfig, folder: RunFolder, alone: ExperimentConfig | None = None) -> Iterator[Served]:
    """Run the supervised stage, join the cluster and start the workers, without waiting; always stop them.

    `alone` is what comes after the stage, if the run has no engines or no learner (`rl.apart`).
    """
    policy_path = supervised_stage(config, folder)
    config = alone or config
    check_teachers(policy_path, config)  # again: a policy that the stage built has a new tokenizer
    with cluster(config, policy_path, store_bytes(config, policy_path)) as joined, handled_signals():
        check_room(config, policy_path)
        with served_judge(config, joined.places.judges) as variables:
            pool = WorkerPool(config, policy_path, joined.places.engines, variables=variables)
            teachers = TeacherPool(config, joined.places.teachers)
            try:
                yield Served(config, folder, policy_path, joined, pool, teachers)
            finally:
                pool.shutdown()
                teachers.shutdown()


@contextlib.contextmanager
def started(
    served: Served,
    deaths: Sequence[LearnerDied] = (),
    recording: Recording | None = None,
    groups_of: RunFolder | None = None,
) -> Iterator[Parts]:
    """All parts of the loop, which serve and train the weights of the newest checkpoint; the learner is always stopped.

    `deaths` are those of the run's learners before. An asynchronous run is recorded, also without a `recording`, which
    may be one that repeats another. With `groups_of` the loop gets the groups that this run saved.
    """
    config, folder = served.config, served.folder
    with Display(config) as display, Tracker(folder, config) as tracker:
        display.stage("starting learner and engines" if not deaths else "starting the learner again")
        newest = folder.newest  # verified when the folder was opened
        learner = LearnerGroup(
            config, served.policy_path, newest.learner if newest else None, served.joined.places.learner, len(deaths)
        )
        try:
            ledger = Ledger.from_state(newest.state["ledger"] if newest else Ledger().state())
            canaries = Canaries(config.canaries, newest.state["canaries"] if newest else {})
            drawn = newest.state.get("curricula") if newest else None  # older checkpoints have none
            stream = TaskStream(config.environments, config.seed, config.train.num_prompts, drawn)
            step, spool = folder.saved_step, Spool(folder.spool, config.train)
            taken_over = spool.take_over(step, ledger, stream)
            is_recorded = config.train.max_staleness > 0 and config.train.record and groups_of is None
            recording = recording or Recording(folder if is_recorded else None)
            recording.begin(config, step, spool.folder, is_again=bool(deaths))
            collector = Collector(config, served.pool, stream, ledger, spool.file, recording)
            groups = SavedGroups(groups_of, ledger, step) if groups_of else collector
            parts = Parts(
                *(config, folder, learner, served.pool, served.teachers, groups),
                *(stream, ledger, spool, canaries, tracker, display, step),
                recording=recording,
            )
            _wait_until_ready(parts, served, deaths)
            if taken_over:
                display.message(taken_over)
                tracker.note(step, taken_over)
            display.stage("training")
            yield parts
        finally:
            learner.shutdown()
            if recording is not None:
                recording.close()


def go_back(served: Served, error: LearnerDied) -> None:
    """Drop what was done since the newest checkpoint, so that the learner can be started again, and wait until it has
    places: its node may be lost.
    """
    logger.warning("%s", error)
    served.pool.drop_plays()
    wait_until_living(served.joined.places.learner, served.config.train.start_timeout_s)
    served.folder.go_back(served.config.train.num_steps)


def _wait_until_ready(parts: Parts, served: Served, deaths: Sequence[LearnerDied]) -> None:
    try:
        if deaths and not parts.recording.is_replay:
            served.pool.drop_plays()  # again: a node that was lost may have been noticed only now
            served.teachers.revive()
        else:
            served.pool.wait_until_ready()
            served.teachers.wait_until_ready()
        served.pool.record(parts.recording)
        if served.pool.num_workers:
            parts.folder.save_token_texts(served.pool.token_texts())
        for line in (served.joined.words, parts.learner.describe(), *parts.stream.described()):
            parts.display.message(line)
        if deaths:
            why = str(deaths[-1].__cause__ or deaths[-1]).partition("\n")[0]
            told = f"the learner died and was started again from step {parts.step}: {why}"
            parts.display.message(told)
            parts.tracker.note(parts.step, told)
        # Engines load the run's first policy, unquantised: publish if the learner holds other values.
        must_publish = parts.step > 0 or parts.config.precision.is_quantised or deaths
        if must_publish and served.pool.num_workers:
            served.pool.load_weights(parts.learner.publish())
            served.pool.wait_until_loaded()
    except (ActorDied, WeightsLost, DeadlinePassed) as error:
        if isinstance(error, DeadlinePassed) and not deaths:
            raise
        failure = LearnerDied if deaths else ClusterError  # what fails at the first start would fail again
        raise failure(f"the learner or an engine failed to start: {error}") from error
