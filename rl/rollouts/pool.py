"""The workers of a run: starting them, giving them weights and groups, replacing one that died."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rl.cluster.cluster import ActorDied, ClusterError, start_actor, stop_actor, wait_for
from rl.config.experiment import ExperimentConfig
from rl.engine.protocol import EngineError
from rl.rollouts.worker import GroupSpec, RolloutWorker
from rl.weights.source import WeightSource


class WeightHashError(RuntimeError):
    """An engine loaded other bytes than the learner published."""


class WorkerPool:
    def __init__(self, config: ExperimentConfig, policy_path: Path) -> None:
        """Starts the workers without waiting; `wait_until_ready` does."""
        self._config = config
        self._policy_path = policy_path
        self._source: WeightSource | None = None
        self._workers = [self._start() for _ in range(config.rollout.num_workers)]

    def wait_until_ready(self) -> None:
        """Returns when every engine is up. Raises `ClusterError` at train.start_timeout_s."""
        pids = [worker.pid.remote() for worker in self._workers]
        wait_for(pids, self._config.train.start_timeout_s, "starting the engines", "train.start_timeout_s")

    def token_texts(self) -> list[str]:
        """The text of every token by its id."""
        timeout_s = self._config.train.start_timeout_s
        reference = self._workers[0].token_texts.remote()
        return wait_for(reference, timeout_s, "reading the tokenizer", "train.start_timeout_s")

    @property
    def num_workers(self) -> int:
        return len(self._workers)

    def play(self, worker: int, specs: Sequence[GroupSpec]) -> Any:
        """Hand groups to a worker; returns the reference to its list of groups."""
        return self._workers[worker].play_groups.remote(specs)

    def load_weights(self, source: WeightSource) -> None:
        """Bring a version to every engine; each must answer with the published hash.

        Raises `WeightHashError`; a worker that died meanwhile, or whose engine did, is replaced by one that has the
        version.
        """
        self._source = source
        references = [worker.load_weights.remote(source) for worker in self._workers]
        for index, reference in enumerate(references):
            try:
                self._check_hash(index, reference)
            except (ActorDied, EngineError):
                self.restart(index)

    def restart(self, index: int) -> None:
        """Replace a worker that died; returns when the new one serves the current version."""
        stop_actor(self._workers[index])
        self._workers[index] = self._start()
        timeout_s = self._config.train.start_timeout_s
        try:
            wait_for(self._workers[index].pid.remote(), timeout_s, "restarting a worker", "train.start_timeout_s")
        except ActorDied as error:
            raise ClusterError(f"worker {index} died and could not be replaced: {error}") from error
        if self._source is not None:
            self._check_hash(index, self._workers[index].load_weights.remote(self._source))

    def shutdown(self) -> None:
        for worker in self._workers:
            stop_actor(worker)

    def _start(self) -> Any:
        rollout = self._config.rollout
        return start_actor(
            RolloutWorker, rollout.cpus_per_worker, rollout.gpus_per_worker, self._config, self._policy_path
        )

    def _check_hash(self, index: int, reference: Any) -> None:
        assert self._source is not None
        timeout_s = self._config.train.publish_timeout_s
        loaded = wait_for(reference, timeout_s, "publishing weights", "train.publish_timeout_s")
        if loaded != self._source.hash:
            raise WeightHashError(
                f"engine {index} loaded weights with hash {loaded}, the learner published {self._source.hash} as"
                f" version {self._source.version}; the transport is broken, so the run stops before it trains on it"
            )
