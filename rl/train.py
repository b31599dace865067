"""How does a policy get better? Collect groups, compute advantages, update, publish, track; from time to time evaluate
and write a checkpoint. `run_loop` is the loop; the rest of this file puts its parts together and takes them apart.

    python -m rl train experiments/quickstart.yaml train.num_steps=200
"""

import contextlib
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rl.algorithms.corrections import NonFiniteError
from rl.cluster.cluster import ActorDied, ClusterError, check_cluster, cluster, start_actor, stop_actor, wait_for
from rl.config.experiment import ExperimentConfig
from rl.data_types import Group, Sample, Update
from rl.learner.actor import LearnerActor
from rl.learner.samples import make_samples
from rl.preflight import preflight
from rl.rollouts.collector import Collector
from rl.rollouts.pool import WorkerPool
from rl.runs.canaries import CanaryStop, check_canaries
from rl.runs.checkpoint import Checkpoint, latest_checkpoint, save_checkpoint
from rl.runs.display import Display
from rl.runs.evaluation import evaluation_metrics
from rl.runs.folder import RunFolder
from rl.runs.report import write_report
from rl.runs.tracking import Tracker, step_metrics
from rl.stop import POLL_S, StopRequested, deferred_stop, end_with_parent, handled_signals, raise_if_requested
from rl.tasks.ledger import Ledger
from rl.tasks.stream import TaskStream, evaluation_tasks


@dataclass(slots=True)
class Parts:
    """What the loop works with."""

    config: ExperimentConfig
    folder: RunFolder
    learner: Any
    pool: WorkerPool
    collector: Collector
    ledger: Ledger
    tracker: Tracker
    display: Display
    step: int
    """Updates made so far; also the policy version that is served."""
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        self.display.phase(name)
        yield
        self.seconds[name] += time.monotonic() - started


def run_loop(parts: Parts) -> None:
    """Train until `train.num_steps` updates have been made. Raises `StopRequested` between two steps only."""
    train = parts.config.train
    while parts.step < train.num_steps:
        if parts.config.evaluation.due(parts.step) and not parts.tracker.has_evaluation("step", parts.step):
            evaluate(parts, "step")
        parts.seconds.clear()
        with parts.phase("collect"):
            groups = parts.collector.collect()
        with deferred_stop():
            with parts.phase("update"):
                update = update_policy(parts, make_samples(groups, parts.config.algorithm_of))
            with parts.phase("publish"):
                publish(parts)
            parts.step += 1
            account(parts.ledger, groups)
            track(parts, groups, update)
            if train.checkpoint_due(parts.step):
                checkpoint(parts)


def update_policy(parts: Parts, samples: list[Sample]) -> Update:
    timeout_s = parts.config.train.update_timeout_s
    try:
        return wait_for(parts.learner.update.remote(samples), timeout_s, "an update", "train.update_timeout_s")
    except NonFiniteError as error:
        raise CanaryStop(str(error)) from error


def publish(parts: Parts) -> None:
    """Bring the learner's weights to every engine."""
    timeout_s = parts.config.train.publish_timeout_s
    source = wait_for(parts.learner.publish.remote(), timeout_s, "publishing weights", "train.publish_timeout_s")
    parts.pool.load_weights(source)


def account(ledger: Ledger, groups: Sequence[Group]) -> None:
    for group in groups:
        ledger.finish(group.task.ordinal, masked=not any(rollout.outcome.counts for rollout in group.rollouts))


def track(parts: Parts, groups: Sequence[Group], update: Update) -> None:
    """Write and show what the step did. Raises `CanaryStop` when it must be the last."""
    metrics = step_metrics(groups, update, parts.seconds)
    parts.tracker.track(parts.step, metrics)
    parts.tracker.save_rollouts(parts.step, "train", groups)
    parts.display.step(parts.step, metrics)
    for warning in check_canaries(parts.config.canaries, groups, update):
        parts.display.message(f"step {parts.step}: {warning}")


def evaluate(parts: Parts, label: str) -> None:
    """Play the held-out tasks with the policy that is served now."""
    config = parts.config
    with parts.phase("evaluate"):
        groups = parts.collector.evaluate(evaluation_tasks(config.environments, config.evaluation.num_tasks))
    metrics = evaluation_metrics(groups)
    parts.tracker.track_evaluation(parts.step, label, metrics)
    parts.tracker.save_rollouts(parts.step, "evaluation", groups)
    parts.display.evaluation(label, metrics)


def checkpoint(parts: Parts) -> None:
    """Write weights, optimiser and ledger of the same step, or nothing."""
    timeout_s = parts.config.train.update_timeout_s

    def write_learner(folder: Path) -> None:
        wait_for(parts.learner.save.remote(folder), timeout_s, "writing a checkpoint", "train.update_timeout_s")

    save_checkpoint(
        parts.folder.checkpoints,
        parts.step,
        write_learner,
        {"ledger": parts.ledger.state()},
        keep=parts.config.train.keep_checkpoints,
    )


def train(config: ExperimentConfig, *, resume: bool = False) -> Path:
    """Run the experiment, the supervised stage first where there is one. Returns the report's path.

    Raises `ConfigError` before anything starts, `StopRequested` after a stop by signal (with a checkpoint written),
    `CanaryStop`, and `ClusterError` or the error of an actor when one failed for good.
    """
    preflight(config)
    check_cluster(config)
    with RunFolder.open(config, resume=resume) as folder, handled_signals():
        policy_path = supervised_stage(config, folder)
        with (
            Display(config) as display,
            Tracker(folder) as tracker,
            cluster(config),
            handled_signals(),
            started_parts(config, folder, policy_path, tracker, display) as parts,
        ):
            train_with(parts)
        return write_report(folder.path)


def train_with(parts: Parts) -> None:
    """Evaluate, loop, evaluate; a stop in between leaves a checkpoint of the last complete step."""
    if not parts.tracker.has_evaluation("before", 0):
        evaluate(parts, "before")
    try:
        run_loop(parts)
    except StopRequested:
        parts.display.message(f"stopping: writing a checkpoint of step {parts.step}")
        checkpoint(parts)
        raise
    except ActorDied as error:  # workers are replaced by the collector; the learner holds the only newest weights
        raise ClusterError(f"the learner died; go on from the newest checkpoint with --resume ({error})") from error
    checkpoint(parts)
    if not parts.tracker.has_evaluation("after", parts.step):
        evaluate(parts, "after")


def supervised_stage(config: ExperimentConfig, folder: RunFolder) -> Path:
    """The policy that reinforcement learning starts from; trains it first, in a process of its own, where asked to."""
    if config.sft is None:
        assert config.policy.path is not None
        return config.policy.path
    if not folder.sft.exists():
        command = [sys.executable, "-m", "sft", "train", str(folder.config_file)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with subprocess.Popen(command, env=environment, preexec_fn=end_with_parent) as process:
            try:
                while process.poll() is None:
                    raise_if_requested()
                    time.sleep(POLL_S)
            except BaseException:
                process.terminate()
                raise
        raise_if_requested()  # Ctrl-C reaches the stage too, and may end it before this process looks
        if process.returncode != 0:
            raise StageError(f"the supervised stage ended with exit code {process.returncode}; what it said is above")
    return folder.sft


class StageError(RuntimeError):
    """A stage that runs in a process of its own failed."""


@contextlib.contextmanager
def started_parts(
    config: ExperimentConfig, folder: RunFolder, policy_path: Path, tracker: Tracker, display: Display
) -> Iterator[Parts]:
    """Learner and workers, started, with the newest checkpoint's weights served; ended whatever happens."""
    saved: Checkpoint | None = latest_checkpoint(folder.checkpoints)
    state = saved.state if saved else {"ledger": Ledger().state()}
    ledger = Ledger.from_state(state["ledger"])
    learner_config = config.learner
    display.stage("starting learner and engines")
    learner = start_actor(
        LearnerActor, learner_config.cpus, learner_config.gpus, config, policy_path, saved.learner if saved else None
    )
    pool = WorkerPool(config, policy_path)
    try:
        stream = TaskStream(config.environments, config.seed, config.train.num_prompts)
        collector = Collector(config, pool, stream, ledger)
        step = saved.step if saved else 0
        parts = Parts(config, folder, learner, pool, collector, ledger, tracker, display, step)
        try:
            pool.wait_until_ready()
            folder.save_token_texts(pool.token_texts())
            timeout_s = config.train.start_timeout_s
            precision = wait_for(learner.precision.remote(), timeout_s, "starting the learner", "train.start_timeout_s")
            for told in (precision, *stream.described()):
                display.message(told)
            if step > 0 or config.precision.is_quantised:  # engines start with the policy that the run started from
                publish(parts)
        except ActorDied as error:
            raise ClusterError(f"the learner or an engine failed to start: {error}") from error
        display.stage("training")
        yield parts
    finally:
        pool.shutdown()
        stop_actor(learner)
