"""How does the loop call the learner? `LearnerGroup` hides the processes that update the policy: today one process."""

from collections.abc import Sequence
from pathlib import Path

from rl.cluster.actors import Deadline, start_actor
from rl.config.experiment import ExperimentConfig
from rl.data_types import Sample, Update
from rl.learner.actor import LearnerProcess
from rl.learner.samples import JoinedSamples
from rl.weights.source import WeightSource


class LearnerGroup:
    """Each method waits for its result. In addition to its own errors, each raises `ClusterError` at its deadline,
    `ActorDied` if a process is lost, and `StopRequested` if the run should stop.
    """

    def __init__(
        self, config: ExperimentConfig, policy_path: Path, checkpoint: Path | None = None, node: str | None = None
    ) -> None:
        """Start from a policy, or go on from the learner's part of a checkpoint; on this node or on any.

        Returns before the learner is up.
        """
        learner = config.learner
        self._train = config.train
        self._process = start_actor(LearnerProcess, learner.cpus, learner.gpus, node, config, policy_path, checkpoint)
        self._notes: list[str] = []

    def describe(self) -> str:
        """The number format of the policy's weights, as a line of text. Returns once the learner is up."""
        deadline = Deadline(self._train.start_timeout_s, "starting the learner", "train.start_timeout_s")
        return self._process.call(LearnerProcess.describe).wait(deadline)

    def update(self, samples: Sequence[Sample]) -> Update:
        """Train on all samples of a step. Raises `NonFiniteError`; nothing was trained then."""
        deadline = Deadline(self._train.update_timeout_s, "an update", "train.update_timeout_s")
        update, notes = self._process.call(LearnerProcess.update, JoinedSamples.join(samples)).wait(deadline)
        self._notes += [f"learner: {note}" for note in notes]
        return update

    def publish(self) -> WeightSource:
        """Publish the current weights to the engines. The previous version stays readable."""
        deadline = Deadline(self._train.publish_timeout_s, "publishing weights", "train.publish_timeout_s")
        return self._process.call(LearnerProcess.publish).wait(deadline)

    def save(self, folder: Path) -> None:
        """Write the state that a learner needs to continue bit for bit, with the policy in `policy_in(folder)`."""
        deadline = Deadline(self._train.update_timeout_s, "writing a checkpoint", "train.update_timeout_s")
        self._process.call(LearnerProcess.save, folder).wait(deadline)

    def notes(self) -> list[str]:
        """Notes of the processes since the last call."""
        said, self._notes = self._notes, []
        return said

    def shutdown(self) -> None:
        self._process.stop(LearnerProcess.shutdown)
