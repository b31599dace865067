"""How is a policy trained? The training loop collects groups, computes advantages, updates, publishes and tracks; every
few steps it evaluates and writes a checkpoint. `run_loop` is the loop; `rl.parts` starts and stops its parts.

    python -m rl train experiments/quickstart.yaml train.num_steps=200
"""

import contextlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rl.algorithms.corrections import NonFiniteError
from rl.algorithms.shaping import shaped, shaping_metrics, with_signal
from rl.checks import check
from rl.cluster.actors import ActorDied
from rl.cluster.objects import StoreFull
from rl.config.experiment import ExperimentConfig
from rl.data_types import Group, Sample, Update
from rl.learner.samples import make_samples
from rl.parts import Evaluation, LearnerDied, Parts, engines, go_back, started
from rl.process_memory import resident_mib
from rl.runs.canaries import CanaryStop
from rl.runs.evaluation import evaluation_metrics
from rl.runs.folder import RunFolder
from rl.runs.memory import memory_metrics
from rl.runs.pause import ask_to_pause, wait_to_go_on
from rl.runs.report import write_report
from rl.runs.tracking import step_metrics
from rl.saving import begin_checkpoint, checkpoint, end_checkpoint
from rl.stop import deferred_stop, handled_signals
from rl.tasks.stream import evaluation_tasks
from rl.weights.source import WeightsLost


def run_loop(parts: Parts) -> None:
    """Train until the last step's update has been made. Raises `StopRequested` between two steps only."""
    train = parts.config.train
    while parts.step < parts.last_step:
        wait_if_paused(parts)
        # At the start of an iteration, so that a resumed run makes an evaluation that was due before it stopped.
        if parts.config.evaluation.due(parts.step):
            begin_evaluation(parts, "step")
        with parts.phase("collect"):
            groups = parts.collector.collect()
        end_checkpoint(parts)  # before the update: it is of the weights before it
        parts.recording.collected(parts.step + 1, groups)
        trained = parts.canaries.check_groups(groups)  # before the update: nothing is trained on bad groups
        samples = training_rows(parts, trained)
        with deferred_stop():  # a signal must not separate an update from its ledger entry
            with parts.phase("update"):
                update = update_policy(parts, trained, samples)
            if update is None:
                finish(parts, groups, trained=())
                continue
            parts.canaries.check_update(update)  # before broken weights reach the engines
            account(parts, groups, trained)  # before publishing, which may fail: they are trained, served or not
            try:
                end_evaluation(parts)  # before publishing: it is of one version
                with parts.phase("publish"):
                    publish(parts, update)
            finally:  # whatever fails there: the checkpoint that is left holds the step, so its record must too
                with parts.phase("track"):
                    track(parts, groups, update)
            # After tracking: a resumed run keeps the lines of all steps in the checkpoint, so they must be written.
            if train.checkpoint_due(parts.step):
                begin_checkpoint(parts)


def training_rows(parts: Parts, trained: Sequence[Group]) -> list[Sample]:
    """The rows of the groups that are trained, with the logprobs of their teachers."""
    with parts.phase("update"):
        select = with_signal if parts.config.train.max_sampling_rounds > 1 else shaped
        samples = make_samples(select(trained, parts.config.shapings), parts.config.algorithm_of, parts.config.needs)
    if parts.teachers.num_engines:
        with parts.phase("score"):
            samples = parts.teachers.scored(samples)
    return samples


def update_policy(parts: Parts, trained: Sequence[Group], samples: Sequence[Sample]) -> Update | None:
    """Train on the groups' rows; None if nothing was trained and they are to be masked."""
    parts.is_consistent = False
    try:
        return parts.learner.update(samples)
    except StoreFull:  # nothing was sent to the learner
        parts.is_consistent = True
        raise
    except NonFiniteError as error:  # nothing was trained
        parts.is_consistent = True
        parts.canaries.mask_update(trained, error)
        return None


def account(parts: Parts, groups: Sequence[Group], trained: Sequence[Group]) -> None:
    """Count the step and finish its tasks, so that they are never played again; ask for a pause if a canary does."""
    parts.step += 1
    finish(parts, groups, trained)
    reasons = parts.canaries.count_step()
    parts.is_consistent = True
    ask_to_pause(parts.folder.paused_file, reasons)


def finish(parts: Parts, groups: Sequence[Group], trained: Sequence[Group]) -> None:
    """Mark the tasks of the groups as finished, and those that gave nothing to train as masked."""
    rows = {group.group_id: any(rollout.outcome.counts for rollout in group.rollouts) for group in trained}
    for group in groups:
        parts.ledger.finish(group.task.ordinal, masked=not rows.get(group.group_id))
    parts.stream.finish(parts.step, groups, rows)
    parts.spool.trained(groups, parts.folder.saved_step)


def publish(parts: Parts, update: Update) -> None:
    """Let the engines, if the run has any, serve what the update made."""
    if parts.pool.num_workers:
        parts.recording.updated(parts.step, update)  # first: the step is counted, also if this fails
        published = parts.learner.publish()
        parts.pool.load_weights(published)
        parts.recording.published(parts.step, published)


def track(parts: Parts, groups: Sequence[Group], update: Update) -> None:
    """Write and display the metrics of the step, and what canaries and actors said."""
    work = parts.pool.work()
    seconds, overlap = parts.times.seconds(), parts.times.overlap([one.intervals for one in work])
    metrics = step_metrics(groups, update, seconds, overlap) | parts.canaries.metrics()
    metrics |= shaping_metrics(groups, parts.config.shapings) | parts.stream.metrics()
    metrics |= memory_metrics(resident_mib(), parts.learner.memory_mib, work)
    metrics["groups"] = len(groups)
    metrics["groups_in_flight"] = parts.collector.num_in_flight
    parts.times.clear()  # what tracking takes from here on is counted with the next step
    parts.tracker.save_rollouts(parts.step, "train", groups)
    parts.tracker.track(parts.step, metrics)
    parts.display.step(parts.step, metrics)
    say(parts)


def say(parts: Parts, *texts: str) -> None:
    """Show and record texts, and what canaries and actors said since the last time."""
    sources = (parts.canaries, parts.stream, parts.pool, parts.teachers, parts.learner)
    for text in (*texts, *(note for source in sources for note in source.notes())):
        parts.tracker.note(parts.step, text)
        parts.display.message(f"step {parts.step}: {text}")


def wait_if_paused(parts: Parts) -> None:
    """Write a checkpoint and wait, if a canary or somebody asked for a pause."""
    paused = parts.folder.paused_file
    if paused.exists() and not parts.recording.is_replay:  # nobody is to look at what was looked at before
        checkpoint(parts)
        with parts.phase("paused"):
            wait_to_go_on(paused, parts.config.canaries.pause_timeout_s, partial(say, parts))


def begin_evaluation(parts: Parts, label: str) -> None:
    """Evaluate the served policy on the held-out tasks, if that is not done; in a replay, if the recorded run did so.

    In an asynchronous run this only begins: the evaluation goes on during the next update, until weights are published.
    """
    is_made = parts.tracker.has_evaluation(label, parts.step) or not parts.recording.evaluates(label, parts.step)
    if is_made or parts.evaluation or not parts.pool.num_workers:
        return
    config, is_asynchronous = parts.config, parts.config.train.max_staleness > 0
    tasks = evaluation_tasks(config.environments, config.evaluation.num_tasks)
    rounds = parts.collector.evaluate(tasks, at_once=is_asynchronous)
    parts.evaluation = Evaluation(label, parts.step, rounds)
    if not is_asynchronous:  # else the step's groups would share the engine with it, and their bits would change
        end_evaluation(parts)


def end_evaluation(parts: Parts) -> None:
    """Wait for the evaluation that was begun, if any, and write it."""
    if parts.evaluation is None:
        return
    (label, step, rounds), parts.evaluation = parts.evaluation, None
    with parts.phase("evaluate"):
        groups = [group for round in rounds for group in round]
        parts.tracker.save_rollouts(step, "evaluation", groups)  # first, so that no failure below loses them
        metrics = evaluation_metrics(groups)
        parts.tracker.track_evaluation(step, label, metrics)
    parts.recording.evaluated(label, step, groups)
    parts.display.evaluation(label, metrics)
    say(parts)


def evaluate(parts: Parts, label: str) -> None:
    """Evaluate the served policy now, if that is not done."""
    begin_evaluation(parts, label)
    end_evaluation(parts)


def train(config: ExperimentConfig, *, resume: bool | None = False) -> Path:
    """Run the experiment, with the supervised stage first if it has one. Returns the report's path.

    `resume` None resumes if the run folder holds a run, and otherwise begins one (`RunFolder.open`).
    A learner that dies is started again from the newest checkpoint, `train.num_learner_restarts` times; engines go on.
    Raises `ConfigError` before anything starts, `StopRequested` after a stop by signal (with a checkpoint written),
    `CanaryStop`, and `ClusterError` or an actor's error if an actor failed for good.
    """
    check(config)
    with RunFolder.open(config, resume=resume) as folder, handled_signals(), engines(config, folder) as served:
        deaths: list[LearnerDied] = []
        while True:
            try:
                with started(served, deaths) as parts:
                    train_with(parts)
                break
            except LearnerDied as error:
                deaths.append(error)
                if len(deaths) > config.train.num_learner_restarts:
                    raise
                go_back(served, error)
        return write_report(folder.path)


def train_with(parts: Parts) -> None:
    """Evaluate, train, evaluate. If the loop ends between two steps, for any reason, the last step is saved."""
    try:
        if parts.step == 0 and not parts.tracker.has_evaluation("before", 0):
            evaluate(parts, "before")
            parts.times.clear()
        run_loop(parts)
        checkpoint(parts)
        evaluate(parts, "after")
    except (ActorDied, WeightsLost) as error:  # the pool replaces workers; the learner holds the only newest weights
        with contextlib.suppress(Exception):
            end_checkpoint(parts)  # it may be whole, and nothing is written while another learner starts from it
        raise LearnerDied(f"the learner died; --resume goes on from the newest checkpoint ({error})") from error
    except BaseException as error:
        try:
            say(parts)
        except Exception as failed:  # such as a full disk: the checkpoint comes first
            parts.display.message(f"the last notes could not be recorded: {failed}")
        if isinstance(error, CanaryStop):
            parts.spool.clear()  # else a resumed run would meet the same groups, and stop again
        leave_checkpoint(parts)
        raise


def leave_checkpoint(parts: Parts) -> None:
    """Try to write a checkpoint before the run ends; only possible if weights and ledger are of the same step."""
    if not parts.is_consistent:
        parts.display.message("stopping during an update: --resume goes on from the checkpoint before it")
        return
    parts.display.message(f"stopping: writing a checkpoint of step {parts.step}")
    try:
        checkpoint(parts)
    except Exception as error:  # the error that ends the run is the one to show
        parts.display.message(f"no checkpoint of step {parts.step} could be written: {error}")
