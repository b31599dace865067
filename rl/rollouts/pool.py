"""How are workers managed: how do they get weights and groups, and how is a worker that dies replaced?

A task may kill its worker. Groups in flight on a dead worker are therefore played again one at a time, with nothing
else on that worker; one that kills a worker while it is alone is the cause, and is masked. A synchronous run plays them
again together before: the bits of a reply depend on its batch, and most workers die by chance.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rl.cluster.actors import Actor, ActorDied, Deadline, DeadlinePassed, Pending, start_actor, stop_together
from rl.cluster.address import ClusterError
from rl.cluster.reserve import Place
from rl.config.experiment import ExperimentConfig
from rl.data_types import Group
from rl.engine.protocol import EngineError
from rl.engine.work_times import Work
from rl.rollouts.course import Course, RecordedDeath
from rl.rollouts.loading import begin_loading, check_hash
from rl.rollouts.plays import Part, Play
from rl.rollouts.worker import GroupSpec, Played, RolloutWorker
from rl.weights.source import Listener, Publication, WeightSource

logger = logging.getLogger(__name__)


class WorkerPool:
    def __init__(
        self,
        config: ExperimentConfig,
        policy_path: Path,
        places: Sequence[Place],
        start: Callable[[Place], Actor[RolloutWorker]] | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        """Starts a worker in each place, without waiting; `wait_until_ready` waits. `start` replaces Ray for starting
        one worker; `variables` are as in `RolloutWorker`.
        """
        self._config = config
        rollout = config.rollout
        cpus, gpus = rollout.cpus_per_worker, rollout.gpus_per_worker
        self._start = start or (
            lambda place: start_actor(RolloutWorker, cpus, gpus, place, config, policy_path, variables)
        )
        self._places = places
        self._published: Publication | None = None
        self._loading: tuple[WeightSource, list[Pending[str]], Deadline] | None = None
        self._plays: list[list[Play]] = [[] for _ in places]
        """By worker, in the order in which they were handed over."""
        self._num_groups = [0 for _ in places]
        """In these; counted, because hundreds of workers are asked for each group."""
        self._notes: list[str] = []
        self._workers = [self._start(place) for place in places]
        self._numbers = list(range(len(places)))
        self._course = Course()

    @property
    def num_workers(self) -> int:
        return len(self._workers)

    def wait_until_ready(self) -> None:
        """Returns when every engine is up. Raises `ClusterError` at train.start_timeout_s."""
        deadline = self._start_deadline("starting the engines")
        for pending in [worker.call(RolloutWorker.wait_until_ready) for worker in self._workers]:
            pending.wait(deadline)

    def record(self, course: Course) -> None:
        """Record what the engines, which play nothing, do from now on, or let them follow a record."""
        self._course = course
        self._begin_record(range(self.num_workers))

    def token_texts(self) -> list[str]:
        """The text of every token by its id."""
        texts = self._workers[0].call(RolloutWorker.token_texts)
        return texts.wait(self._start_deadline("reading the tokenizer"))

    def play(self, worker: int, specs: Sequence[GroupSpec]) -> Play:
        """Hand groups to a worker, in one call."""
        play = Play([Part(worker, tuple(specs))])
        self._plays[worker].append(play)
        self._num_groups[worker] += play.num_groups
        # A suspect group must be alone on its worker: `collect` hands this one over later, when its turn comes.
        if not any(part.is_suspect for part in self._parts_of(worker)):
            self._hand_over(play.parts[0])
        return play

    def collect(self, play: Play, deadline: Deadline) -> list[Group]:
        """Wait for the groups, in the order in which they were handed over.

        A worker that dies is replaced, and so is one whose process does not answer for rollout.heartbeat_timeout_s. A
        worker that still plays at the deadline may hang too: it counts as dead, and a new one plays its groups with the
        same time again. Raises `ClusterError` if another deadline passes after a group was masked for it: then the
        cause is no single group.
        """
        num_left = self._num_tries
        while unfinished := next((part for part in play.parts if part.groups is None), None):
            if unfinished.pending is None:
                self._hand_over(unfinished)
                deadline = deadline.renewed()  # it has waited for its turn here, in our own queue
            try:
                self._course.check_alive(unfinished.worker, unfinished.name)
                self._take(unfinished, self._played(unfinished, deadline))
            except (ActorDied, EngineError) as error:
                self._replace(unfinished.worker, error, unfinished.name)
            except DeadlinePassed as error:
                if not num_left:
                    raise
                self._replace(unfinished.worker, error, unfinished.name)
                deadline, num_left = deadline.renewed(), num_left - 1
        self._plays[play.worker].remove(play)
        self._num_groups[play.worker] -= play.num_groups
        return [group for part in play.parts for group in part.groups or ()]

    def drop_plays(self) -> None:
        """Let all groups in flight end and drop them, and replace workers that died, also idle ones: the learner that
        died may have taken its node with it. No version is published any more. Raises `ClusterError`.
        """
        self._published = self._loading = None
        deadline = Deadline(self._config.train.collect_timeout_s, "ending groups", "train.collect_timeout_s")
        answers = [worker.call(RolloutWorker.wait_until_ready) for worker in self._workers]
        for index, answer in enumerate(answers):
            try:
                for part in self._parts_of(index):
                    if part.pending is not None and part.groups is None:
                        self._take(part, self._played(part, deadline))
                answer.wait(self._heartbeat_deadline())
            except (ActorDied, EngineError, DeadlinePassed) as error:
                self._replace(index, error)
            self._plays[index].clear()
            self._num_groups[index] = 0

    def least_busy(self) -> int:
        """The worker that plays the fewest groups."""
        return min(range(self.num_workers), key=self._num_groups.__getitem__)

    def load_weights(self, published: Publication) -> None:
        """Begin to load a version into every engine; `wait_until_loaded` waits, so that the loop tracks and saves the
        step meanwhile. Raises `WeightsLost` if a process died while the learner was sending.
        """
        self._published = published  # before the calls: a worker that is replaced later loads this version
        deadline = self._publish_deadline()
        self._loading = (*self._begin_loading(range(self.num_workers), deadline), deadline)

    def wait_until_loaded(self) -> None:
        """Wait until each engine has answered with the hash of what the learner published.

        A worker that died meanwhile, whose engine did, or that does not answer in time is replaced by one that has the
        version. Raises `WeightHashError`.
        """
        if self._loading is None:
            return
        (source, answers, deadline), self._loading = self._loading, None
        for index, answer in enumerate(answers):
            try:
                self._course.check_alive(index)
                check_hash(index, source, answer, deadline)
            except (ActorDied, EngineError, DeadlinePassed) as error:
                self._replace(index, error)

    def work(self) -> list[Work]:
        """What each worker did since the last call; nothing of one that does not answer."""
        deadline, told = self._heartbeat_deadline(), []
        for answer in [worker.call(RolloutWorker.work) for worker in self._workers]:
            try:
                told.append(answer.wait(deadline))
            except (ActorDied, EngineError, DeadlinePassed):  # whoever waits for its groups replaces it
                told.append(Work())
        return told

    def notes(self) -> list[str]:
        """Notes of the workers since the last call: warnings that they logged, and deaths."""
        said, self._notes = self._notes, []
        return said

    def shutdown(self) -> None:
        stop_together(self._workers, RolloutWorker.shutdown)

    def _hand_over(self, part: Part) -> None:
        part.pending = self._workers[part.worker].call(RolloutWorker.play_groups, part.specs)

    def _played(self, part: Part, deadline: Deadline) -> Played:
        """Wait for the part. Raises `ActorDied` also for a worker whose process does not answer."""
        assert part.pending is not None
        limit = self._heartbeat_deadline()
        while not part.pending.is_done() and deadline.left_s > limit.seconds:
            beat = self._workers[part.worker].call(RolloutWorker.wait_until_ready)
            try:
                return part.pending.wait(replace(deadline, seconds=limit.seconds, started=time.monotonic()))
            except DeadlinePassed:
                if not beat.is_done():
                    told = f"its process has not answered for {limit.seconds:g} s ({limit.key})"
                    raise ActorDied(told) from None
                logger.warning("%s: %s", part.waited_for(deadline), self._doing(part.worker))
        return part.pending.wait(deadline)

    def _doing(self, worker: int) -> str:
        try:
            answer = self._workers[worker].call(RolloutWorker.doing)
            return answer.wait(Deadline(10.0, "asking a worker what it does", "a fixed limit"))
        except (ActorDied, DeadlinePassed) as error:
            return f"it does not say what they do ({error})"

    def _take(self, part: Part, played: Played) -> None:
        part.groups = played.groups
        self._notes += [f"worker {part.worker}: {note}" for note in played.notes]

    def _parts_of(self, worker: int) -> list[Part]:
        return [part for play in self._plays[worker] for part in play.parts]

    def _replace(self, index: int, error: Exception, waiting_for: str = "") -> None:
        """Start a new worker in place of one that died, twice if need be; returns when it serves the current version.

        Groups that the dead worker had finished are kept, also those whose only copy is a keeper's: large answers lie
        on the worker's node. Groups that were in flight on it are suspects.
        """
        # Before the new worker starts: it has the same index, and its calls must not be mistaken for the old ones.
        lost = [part for part in self._parts_of(index) if not self._has_ended(part, error)]
        self._course.replaced(index, error, waiting_for, [part.name for part in lost])
        self._notes.append(f"worker {index} died and is replaced: {error}")
        is_synchronous = self._config.train.max_staleness == 0
        for play in self._plays[index]:
            rests = [
                part.after_death(error, self._num_tries, is_synchronous) if part in lost else [part]
                for part in play.parts
            ]
            play.parts = [part for rest in rests for part in rest]
        for is_last in (False, True):  # until Ray has noticed that a node is lost, it starts workers there
            self._workers[index].stop(RolloutWorker.shutdown)
            self._workers[index] = self._start(self._places[index])
            self._numbers[index] = max(self._numbers) + 1
            try:
                return self._wait_until_serving(index)
            except (ActorDied, EngineError) as again:
                if is_last:
                    raise ClusterError(f"worker {index} died and could not be replaced: {again}") from again

    def _wait_until_serving(self, index: int) -> None:
        ready = self._workers[index].call(RolloutWorker.wait_until_ready)
        ready.wait(self._start_deadline("restarting a worker"))
        self._begin_record([index])
        if self._published is not None:
            deadline = self._publish_deadline()
            source, (answer,) = self._begin_loading([index], deadline)
            check_hash(index, source, answer, deadline)

    def _has_ended(self, part: Part, error: Exception) -> bool:
        """Whether the part is none that is lost with its worker, which died of this error."""
        if part.groups is not None or part.pending is None:
            return True
        if isinstance(error, RecordedDeath):
            return part.name not in error.lost and self._ends(part)
        if part.pending.is_done():
            try:
                self._take(part, part.pending.wait(Deadline(10.0, "reading finished groups", "a fixed limit")))
                return True
            except (ActorDied, EngineError, DeadlinePassed):
                pass  # it ended with its worker
        return part.take_kept()

    def _ends(self, part: Part) -> bool:
        """Wait for a part that ended in the recorded run before its worker died, which here is alive until then."""
        try:
            deadline = Deadline(self._config.train.collect_timeout_s, "ending groups", "train.collect_timeout_s")
            self._take(part, self._played(part, deadline))
        except (ActorDied, EngineError, DeadlinePassed) as error:
            self._course.replaced(part.worker, error, part.name, ())
        return True

    def _begin_record(self, workers: Sequence[int]) -> None:
        """Let the engines, which play nothing, record what they do from now on, or follow a record."""
        deadline = self._start_deadline("beginning a record")
        files = [(self._workers[index], self._course.engine_files(index)) for index in workers]
        for answer in [worker.call(RolloutWorker.record, one) for worker, one in files if one is not None]:
            answer.wait(deadline)

    @property
    def _num_tries(self) -> int:
        """How many workers may die while they play a group until it is masked."""
        num_retries = self._config.rollout.num_retries
        is_played_together = num_retries and self._config.train.max_staleness == 0  # once more, which keeps the bits
        return num_retries + 1 + (1 if is_played_together else 0)

    def _heartbeat_deadline(self) -> Deadline:
        limit_s = self._config.rollout.heartbeat_timeout_s
        return Deadline(limit_s, "an answer of a worker", "rollout.heartbeat_timeout_s")

    def _start_deadline(self, what: str) -> Deadline:
        return Deadline(self._config.train.start_timeout_s, what, "train.start_timeout_s")

    def _publish_deadline(self) -> Deadline:
        train = self._config.train
        # In a replay an engine holds the version back until the step at which it came, and the update may be quicker.
        waiting_s = train.update_timeout_s if self._course.is_replay else 0.0
        return Deadline(train.publish_timeout_s + waiting_s, "publishing weights", "train.publish_timeout_s")

    def _begin_loading(self, workers: Sequence[int], deadline: Deadline) -> tuple[WeightSource, list[Pending[str]]]:
        assert self._published is not None
        num_cards = max(1, int(self._config.rollout.gpus_per_worker))
        asked = [(Listener(self._numbers[worker], num_cards), self._workers[worker]) for worker in workers]
        return begin_loading(self._published, asked, deadline)
