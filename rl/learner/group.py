"""How does the loop call the learner? `LearnerGroup` hides the processes, its ranks, that update the policy."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from rl.cluster.actors import (
    Actor,
    ActorDied,
    Deadline,
    DeadlinePassed,
    Pending,
    shared,
    start_actor,
    stop_together,
    wait_together,
)
from rl.cluster.reserve import Place
from rl.config.experiment import ExperimentConfig
from rl.data_types import Sample, Update
from rl.file_hashes import WrittenFile
from rl.learner.actor import LearnerProcess
from rl.learner.samples import JoinedSamples
from rl.weights.source import Listener, Offer, Publication

R = TypeVar("R")
P = ParamSpec("P")


class RanksDiffer(RuntimeError):
    """Ranks that train one policy came to different results, so their weights are not one policy any more."""


class LearnerGroup:
    """Each method waits for its result. In addition to its own errors, each raises `ActorDied` if a process is lost or
    does not answer by its deadline, and `StopRequested` if the run should stop.
    """

    memory_mib: Mapping[str, float]
    """By part, after the last update; of the rank that holds most (`rl.learner.learner.Learner.memory_mib`)."""

    def __init__(
        self,
        config: ExperimentConfig,
        policy_path: Path,
        checkpoint: Path | None = None,
        places: Sequence[Place] | None = None,
        epoch: int = 0,
    ) -> None:
        """Start from a policy, or go on from the learner's part of a checkpoint; each rank in its place, or on any.

        `epoch` is how many learners of this run died before: their versions are older than any of this one. Returns
        before the learner is up.
        """
        learner = config.learner
        self._train, self._epoch, self._is_live = config.train, epoch, config.weights.is_live
        self._ranks: list[Actor[LearnerProcess]] = [
            start_actor(LearnerProcess, learner.cpus, learner.gpus, place, config, policy_path, rank)
            for rank, place in enumerate(places or learner.num_ranks * [None])
        ]
        first = self._ranks[0].call(LearnerProcess.meeting_point) if learner.num_ranks > 1 else None
        address = first.as_argument() if first else None
        self._started = [rank.call(LearnerProcess.start, address, checkpoint) for rank in self._ranks]
        self._notes: list[str] = []
        self._saves = threading.Lock()
        """Held while a checkpoint is written: its processes do nothing else meanwhile."""

    def describe(self) -> str:
        """The number format of the policy's weights, as a line of text. Returns once the learner is up."""
        deadline = Deadline(self._train.start_timeout_s, "starting the learner", "train.start_timeout_s")
        wait_together(self._started, deadline)
        return self._together(deadline, LearnerProcess.describe)[0]

    def update(self, samples: Sequence[Sample]) -> Update:
        """Train on all samples of a step. Raises `NonFiniteError`; nothing was trained then. Raises `RanksDiffer`."""
        deadline = Deadline(self._train.update_timeout_s, "an update", "train.update_timeout_s")
        joined = shared(JoinedSamples.join(samples))  # one copy a node, which its ranks read in place
        results = self._together(deadline, LearnerProcess.update, joined)
        for rank, (*_, notes) in enumerate(results):
            name = "learner" if len(results) == 1 else f"learner rank {rank}"
            self._notes += [f"{name}: {note}" for note in notes]
        update, replicas, sizes, _ = results[0]
        self.memory_mib = {part: max(memory[part] for _, _, memory, _ in results) for part in sizes}
        for rank, (other, held, *_) in enumerate(results):
            # As text, in which NaN is equal to itself: a canary is to tell of that.
            if held != replicas or str(replace(other, seconds=update.seconds)) != str(update):
                raise RanksDiffer(
                    f"rank {rank} of the learner computed {other} and holds weights {held}, rank 0 computed {update}"
                    f" and holds {replicas}. Go on from the last checkpoint with --resume"
                )
        return update

    def publish(self) -> Publication:
        """Publish the current weights to the engines; the previous version stays readable. With a transport that sends
        while engines receive, the result is this learner itself: it holds the version ready until the next update.
        """
        if self._is_live:
            return self
        deadline = Deadline(self._train.publish_timeout_s, "publishing weights", "train.publish_timeout_s")
        first, *others = self._ranks
        published = first.call(LearnerProcess.publish)
        _wait([published, *(rank.call(LearnerProcess.gather) for rank in others)], deadline)
        return replace(published.wait(deadline), epoch=self._epoch)

    def offer(self, listeners: Sequence[Listener]) -> Offer:
        """Implements `rl.weights.source.Publication`: begin to send the current weights to these engines."""
        with self._saves:  # the deadline below does not count the wait for a checkpoint, which has its own
            pass
        deadline = Deadline(self._train.publish_timeout_s, "announcing weights", "train.publish_timeout_s")
        sources = self._together(deadline, LearnerProcess.announce, tuple(listeners))[0]
        sending = [rank.call(LearnerProcess.send) for rank in self._ranks]
        done = partial(self._together, deadline, LearnerProcess.release)
        return Offer([replace(source, epoch=self._epoch) for source in sources], sending, done)

    def save(self, folder: Path, *, with_policy: bool = True) -> dict[str, WrittenFile]:
        """Write the state that a learner needs to continue bit for bit, with the policy in `policy_in(folder)`; of
        several ranks' slices it is a copy, without which only the tokenizer is there.

        Each rank syncs and hashes what it wrote. Returns all files by their names in the folder.
        """
        deadline = Deadline(self._train.update_timeout_s, "writing a checkpoint", "train.update_timeout_s")
        with self._saves:
            told = self._together(deadline, LearnerProcess.save, folder, with_policy=with_policy)
        return {name: file for files in told for name, file in files.items()}

    def notes(self) -> list[str]:
        """Notes of the processes since the last call."""
        said, self._notes = self._notes, []
        return said

    def shutdown(self) -> None:
        is_up = all(call.is_done() for call in self._started)  # else they would first finish loading
        stop_together(self._ranks, LearnerProcess.shutdown, timeout_s=10.0 if is_up else 0.0)

    def _together(
        self, deadline: Deadline, method: Callable[Concatenate[LearnerProcess, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> list[R]:
        """Call this method of all ranks; the results in their order."""
        calls = [rank.call(method, *args, **kwargs) for rank in self._ranks]
        _wait(calls, deadline)
        return [call.wait(deadline) for call in calls]


def _wait(calls: Sequence[Pending[Any]], deadline: Deadline) -> None:
    """A process that is up and does not answer in time is lost like one that died: it may be stopped, or its node."""
    try:
        wait_together(calls, deadline)
    except DeadlinePassed as error:
        raise ActorDied(str(error)) from error
