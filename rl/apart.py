"""How does a run train without engines, or play without a learner? The other half is in the saved rollouts of a run.

python -m rl train YAML --only-rollouts           # plays train.num_steps steps and saves their rollouts
python -m rl train YAML --rollouts-from RUN       # trains on the rollouts that RUN saved
"""

import time
from pathlib import Path

from rl.checks import check
from rl.cluster.actors import ActorDied
from rl.cluster.address import ClusterError
from rl.config.experiment import ExperimentConfig
from rl.evaluate import serve_quantised, with_values
from rl.parts import Served, engines, started
from rl.rollouts.collector import Collector
from rl.rollouts.judge import announce
from rl.runs.display import Display
from rl.runs.folder import RunFolder
from rl.runs.report import write_report
from rl.runs.saved_groups import check_saved_groups
from rl.runs.tracker import Tracker
from rl.runs.tracking import rollout_metrics
from rl.stop import handled_signals
from rl.tasks.ledger import Ledger
from rl.tasks.stream import TaskStream
from rl.train import train_with


def train_on_saved(config: ExperimentConfig, saved: Path, *, resume: bool | None = False) -> Path:
    """Train on the rollouts that the run `saved` saved; nothing is played, so nothing is evaluated. The report's path.

    The learner starts from the supervised policy of that run, if the experiment has a supervised stage. Raises
    `ConfigError` before anything starts, and as `rl.train.train` does; a learner that dies ends the run.
    """
    run, alone = RunFolder(saved), with_values(config, "rollout", num_workers=0).model_copy(update={"judge": None})
    check_saved_groups(run, config)
    announce(config)  # environments are opened, and the judge that they ask is not served
    check(alone)
    with RunFolder.open(config, resume=resume) as folder, handled_signals():
        folder.link_sft(run)
        with engines(config, folder, alone) as served, started(served, groups_of=run) as parts:
            train_with(parts)
        return write_report(folder.path)


def play_only(config: ExperimentConfig) -> Path:
    """Play `train.num_steps` steps with the policy that training would start from, and save their rollouts.

    Returns the report's path. Raises `ConfigError` before anything starts, and as `rl.train.train` does.
    """
    num_ranks = 1 if config.precision.is_quantised else 0  # only a learner knows the quantised values
    alone = with_values(config, "learner", num_ranks=num_ranks, adapter=None)  # a new adapter changes nothing
    alone = alone.model_copy(update={"teachers": {}})
    check(alone)
    with RunFolder.open(config) as folder, handled_signals(), engines(config, folder, alone) as served:
        try:
            _play(served)
        except ActorDied as error:
            raise ClusterError(f"an engine or the learner failed to start: {error}") from error
        return write_report(folder.path)


def _play(served: Served) -> None:
    config, folder, pool, ledger = served.config, served.folder, served.pool, Ledger()
    with Display(config) as display, Tracker(folder, config) as tracker:
        display.stage("starting the engines")
        pool.wait_until_ready()
        folder.save_token_texts(pool.token_texts())
        if config.precision.is_quantised:
            serve_quantised(config, served.policy_path, pool, served.joined.places)
        stream = TaskStream(config.environments, config.seed, config.train.num_prompts)
        collector = Collector(config, pool, stream, ledger)
        display.stage("playing")
        for step in range(1, config.train.num_steps + 1):
            begun = time.monotonic()
            groups = collector.collect()
            for group in groups:
                counts = any(rollout.outcome.counts for rollout in group.rollouts)
                ledger.finish(group.task.ordinal, masked=not counts)
            tracker.save_rollouts(step, "train", groups)
            metrics = rollout_metrics(groups) | {"seconds": time.monotonic() - begun}
            tracker.track(step, metrics)
            display.step(step, metrics)
            for note in pool.notes():
                tracker.note(step, note)
                display.message(f"step {step}: {note}")
