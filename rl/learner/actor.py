"""What does the learner's actor do? It holds the learner in its process and publishes the weights."""

import logging
import shutil
import signal
from pathlib import Path

from rl.cluster.notes import Notes
from rl.config.experiment import ExperimentConfig
from rl.data_types import Update
from rl.learner.samples import JoinedSamples
from rl.run_log import join_run_log
from rl.weights.source import WeightSource

logger = logging.getLogger(__name__)
CHAT_FILES = ("tokenizer*", "special_tokens_map.json", "chat_template*", "generation_config.json")


class LearnerProcess:
    """The process of one learner; `rl.learner.group.LearnerGroup` starts and calls it."""

    def __init__(self, config: ExperimentConfig, policy_path: Path, checkpoint: Path | None) -> None:
        """Load the policy, or go on from the learner's part of a checkpoint."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver handles Ctrl-C
        join_run_log(config.run_dir, "learner")
        self._notes = Notes()
        from rl.learner.learner import Learner

        self._learner = Learner(policy_path, config)
        if checkpoint is not None:
            self._learner.load_state(checkpoint)
        logger.info("the learner holds %s, policy version %d", policy_path, self._learner.policy_version)
        self._policy_path = policy_path
        self._config = config
        self._publisher = config.weights.publisher()
        self._published: list[WeightSource] = []

    def describe(self) -> str:
        """The number format of the policy's weights, as a line of text. Returns once the learner is up."""
        return self._learner.folded.describe()

    def update(self, samples: JoinedSamples) -> tuple[Update, tuple[str, ...]]:
        """Train on the samples; also returns the process's notes."""
        update = self._learner.update(samples.cut())
        return update, self._notes.take()

    def publish(self) -> WeightSource:
        """Publish the current weights to the engines, and remove versions that no engine reads any more."""
        from rl.weights.names import checkpoint_tensors

        learner = self._learner
        tensors = checkpoint_tensors(learner.model, self._config.precision.arithmetic, learner.folded.quantised)
        self._published.append(self._publisher.publish(tensors, learner.policy_version))
        while len(self._published) > 2:
            self._publisher.forget(self._published.pop(0))
        return self._published[-1]

    def save(self, folder: Path) -> None:
        """Write weights and optimiser state, exactly, into the folder; `folder/model` is a policy folder."""
        self._learner.save_state(folder)
        for pattern in CHAT_FILES:
            for file in self._policy_path.glob(pattern):
                shutil.copy(file, folder / "model")

    def shutdown(self) -> None:
        self._publisher.close()
        self._published.clear()
