"""How do teachers score the rows of a step? A pool of engines of frozen policies, for on-policy distillation."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from rl.cluster.actors import Actor, ActorDied, Deadline, DeadlinePassed, Pending, start_actor, stop_together
from rl.cluster.address import ClusterError
from rl.cluster.reserve import Place
from rl.config.experiment import ExperimentConfig
from rl.data_types import Sample
from rl.engine.protocol import EngineError
from rl.importing import without_collector
from rl.run_log import join_run_log
from rl.tokens import TEACHER, Tokens


class TeacherWorker:
    """The Ray actor that holds one engine of a teacher. It keeps nothing, so that another can take its place."""

    def __init__(self, config: ExperimentConfig, path: Path) -> None:
        join_run_log(config.run_dir, "teacher")
        with without_collector():
            from rl.engine.scorer import Scorer
        self._scorer = Scorer(path, config)

    def wait_until_ready(self) -> None: ...

    def score(self, rows: Sequence[Sequence[int]]) -> list[np.ndarray]:
        return self._scorer.score(rows)

    def shutdown(self) -> None:
        self._scorer.shutdown()


class TeacherPool:
    """The engines of all teachers. One that dies, or misses its deadline, is replaced, and scores its rows again."""

    def __init__(
        self,
        config: ExperimentConfig,
        places: Sequence[Place],
        start: Callable[[Path, Place], Actor[TeacherWorker]] | None = None,
    ) -> None:
        """Starts the engines without waiting; `start` replaces Ray for starting one of them."""
        self._config = config
        rollout = config.rollout
        cpus, gpus = rollout.cpus_per_worker, rollout.gpus_per_worker
        self._start = start or (lambda path, place: start_actor(TeacherWorker, cpus, gpus, place, config, path))
        names = [name for name, teacher in config.teachers.items() for _ in range(teacher.num_engines)]
        self._places = list(zip(names, places, strict=True))
        self._workers = [self._start(config.teachers[name].path, place) for name, place in self._places]
        self._notes: list[str] = []

    @property
    def num_engines(self) -> int:
        return len(self._workers)

    def wait_until_ready(self) -> None:
        """Returns when every engine is up. Raises `ClusterError` at train.start_timeout_s."""
        deadline = self._start_deadline()
        for pending in [worker.call(TeacherWorker.wait_until_ready) for worker in self._workers]:
            try:
                pending.wait(deadline)
            except (ActorDied, EngineError) as error:
                raise ClusterError(f"a teacher's engine failed to start: {error}") from error

    def revive(self) -> None:
        """Replace engines that died: with the learner, a node may be lost. Raises `ClusterError`."""
        for number, worker in enumerate(self._workers):
            try:
                worker.call(TeacherWorker.wait_until_ready).wait(self._start_deadline())
            except (ActorDied, EngineError, DeadlinePassed) as error:
                self._replace(number, error)

    def notes(self) -> tuple[str, ...]:
        """Which engines were replaced since the last call."""
        notes, self._notes = tuple(self._notes), []
        return notes

    def scored(self, samples: Sequence[Sample]) -> list[Sample]:
        """The samples; those of environments with a teacher have the column `rl.tokens.TEACHER`.

        Raises `ClusterError` if an engine fails more often than `rollout.num_retries`, or cannot be replaced.
        """
        parts = self._dealt(samples)
        calls = {number: self._ask(number, samples, part) for number, part in parts.items()}
        logprobs: dict[int, np.ndarray] = {}
        deadline = self._deadline()
        for number, part in parts.items():
            for num_left in range(self._config.rollout.num_retries, -1, -1):
                try:
                    logprobs |= dict(zip(part, calls[number].wait(deadline), strict=True))
                    break
                except (ActorDied, EngineError, DeadlinePassed) as error:
                    if not num_left:
                        raise ClusterError(f"an engine of teacher {self._places[number][0]} failed: {error}") from error
                    self._replace(number, error)
                    calls[number], deadline = self._ask(number, samples, part), self._deadline()
        return [
            replace(sample, tokens=_with_teacher(sample.tokens, logprobs[place])) if place in logprobs else sample
            for place, sample in enumerate(samples)
        ]

    def _dealt(self, samples: Sequence[Sample]) -> Mapping[int, list[int]]:
        """Places of samples by engine: longest first, in turn, so that engines of a teacher have about as much."""
        parts: dict[int, list[int]] = {}
        for name in self._config.teachers:
            engines = [number for number, (own, _) in enumerate(self._places) if own == name]
            places = [place for place, one in enumerate(samples) if self._teacher_of(one) == name]
            places.sort(key=lambda place: -len(samples[place].tokens))
            for turn, place in enumerate(places):
                parts.setdefault(engines[turn % len(engines)], []).append(place)
        return parts

    def _teacher_of(self, sample: Sample) -> str | None:
        return self._config.algorithm_of(sample.env_id).teacher_name

    def _ask(self, number: int, samples: Sequence[Sample], part: Sequence[int]) -> Pending[list[np.ndarray]]:
        return self._workers[number].call(TeacherWorker.score, [samples[place].tokens.ids.tolist() for place in part])

    def _replace(self, number: int, error: Exception) -> None:
        """Start a new engine in place of one that failed, twice if need be; returns when it is up."""
        name, place = self._places[number]
        self._notes.append(f"an engine of teacher {name} failed and is replaced: {error}")
        for is_last in (False, True):  # until Ray has noticed that a node is lost, it starts actors there
            self._workers[number].stop(TeacherWorker.shutdown, timeout_s=0.0)
            self._workers[number] = self._start(self._config.teachers[name].path, place)
            try:
                return self._workers[number].call(TeacherWorker.wait_until_ready).wait(self._start_deadline())
            except (ActorDied, EngineError) as again:
                if is_last:
                    raise ClusterError(f"an engine of teacher {name} could not be replaced: {again}") from again

    def _start_deadline(self) -> Deadline:
        return Deadline(self._config.train.start_timeout_s, "starting the teachers", "train.start_timeout_s")

    def _deadline(self) -> Deadline:
        seconds = self._config.train.collect_timeout_s
        return Deadline(seconds, "scoring by the teachers", "train.collect_timeout_s")

    def shutdown(self) -> None:
        stop_together(self._workers, TeacherWorker.shutdown)


def _with_teacher(tokens: Tokens, logprobs: np.ndarray) -> Tokens:
    return Tokens.make(tokens.ids, tokens.sampled, {**tokens.columns, TEACHER: logprobs})
