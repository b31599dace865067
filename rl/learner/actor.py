"""What does an actor of the learner do? It holds one rank of the learner in its process and publishes the weights."""

import logging
import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rl.cluster.notes import Notes
from rl.config.checkpoint_files import copy_chat
from rl.config.experiment import ExperimentConfig
from rl.config.saved_policy import policy_in
from rl.data_types import Update
from rl.file_hashes import WrittenFile, sync_and_hash
from rl.importing import without_collector
from rl.learner.samples import JoinedSamples
from rl.run_log import join_run_log
from rl.weights.source import BASE_VERSION, Listener, WeightSource

if TYPE_CHECKING:
    from torch import Tensor

    from rl.ranks import Ranks
    from rl.weights.broadcast import Tensors
    from rl.weights.transport import Publisher

logger = logging.getLogger(__name__)


class LearnerProcess:
    """The process of one rank of the learner; `rl.learner.group.LearnerGroup` starts and calls it."""

    def __init__(self, config: ExperimentConfig, policy_path: Path, rank: int = 0) -> None:
        """Call `start` before anything else, but for `meeting_point`."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver handles Ctrl-C
        join_run_log(config.run_dir, "learner" if config.learner.num_ranks == 1 else f"learner rank {rank}")
        self._notes = Notes()
        self._config, self._policy_path, self._rank = config, policy_path, rank

    def meeting_point(self) -> str:
        """An address on this rank's machine where all ranks can meet."""
        from rl.cluster.network import meeting_point

        return meeting_point()

    def start(self, address: str | None = None, checkpoint: Path | None = None) -> None:
        """Meet the other ranks at this address, and load the policy, or the learner's part of a checkpoint."""
        with without_collector():
            from rl.learner.learner import Learner
            from rl.ranks import ALONE

        weights = self._config.weights
        if address is not None or weights.is_live:
            from rl.cluster.network import choose_network_interface

            choose_network_interface(self._config.ray.network_interface)
        self._ranks = ALONE if address is None else self._join(address)
        with without_collector():  # it imports the model's code
            self._learner = Learner(self._policy_path, self._config, self._ranks)
        if checkpoint is not None:
            self._learner.load_state(checkpoint)
        logger.info("the learner holds %s, policy version %d", self._policy_path, self._learner.policy_version)
        self._publisher = None if weights.is_live else weights.publisher()
        self._sender = weights.sender(self._rank, self._learner.model.device) if weights.is_live else None
        self._published: list[WeightSource] = []
        self._base: WeightSource | None = None

    def _join(self, address: str) -> "Ranks":
        import torch

        from rl.ranks import join_ranks

        learner, timeout_s = self._config.learner, self._config.train.ranks_timeout_s
        device = torch.device("cuda", torch.cuda.current_device()) if learner.gpus > 0 else torch.device("cpu")
        return join_ranks(self._rank, learner.num_ranks, address, device, timeout_s, learner.expert_parallel)

    def describe(self) -> str:
        """The number format of the policy's weights, and its adapter, as a line of text."""
        from rl.learner.adapter import describe_adapter

        return self._learner.folded.describe() + describe_adapter(self._learner.model)

    def update(self, samples: JoinedSamples) -> tuple[Update, str, dict[str, float], tuple[str, ...]]:
        """Train on the samples; also returns a hash of what all ranks must hold alike, what the process holds (MiB by
        part), and its notes.
        """
        update = self._learner.update(samples.cut())
        return update, self._learner.replicas(), self._learner.memory_mib(), self._notes.take()

    def publish(self) -> WeightSource:
        """Publish the current weights to the engines, and remove versions that no engine reads any more. Only the first
        rank does; the others must `gather` at the same time.

        With `learner.adapter.publish: adapter` these are the adapter's matrices; its base is published the first time.
        """
        assert self._publisher is not None
        policy, base = self._outgoing()
        if base is not None and self._base is None:
            self._base = self._published_by(self._publisher, base(), BASE_VERSION)
        source = self._published_by(self._publisher, policy(), self._learner.policy_version)
        source = replace(source, base=self._base)
        self._published.append(source)
        while len(self._published) > 2:
            self._publisher.forget(self._published.pop(0))
        return source

    @staticmethod
    def _published_by(publisher: "Publisher", tensors: "Iterable[tuple[str, Tensor]]", version: int) -> WeightSource:
        left = iter(tensors)
        try:
            return publisher.publish(left, version)
        except Exception:  # such as a full disk: the other ranks still help with the rest, and would wait for ever
            for _ in left:
                pass
            raise

    def gather(self) -> None:
        """Help the first rank to make the weights whole that it publishes."""
        if self._config.learner.adapter is None:  # of an adapter and its base each rank has the whole
            for _ in self._tensors(is_merged=True):
                pass

    def announce(self, listeners: Sequence[Listener]) -> list[WeightSource]:
        """What each engine is to load while this rank and all others `send` the current weights."""
        assert self._sender is not None
        return self._sender.announce(self._learner.policy_version, *self._outgoing(), listeners)

    def send(self) -> str:
        """Send what was announced; the hash of it."""
        assert self._sender is not None
        return self._sender.send()

    def release(self) -> None:
        """Free what was kept for the engines: all have loaded it."""
        assert self._sender is not None
        self._sender.release()

    def _outgoing(self) -> "tuple[Tensors, Tensors | None]":
        """What engines need: the policy, or an adapter and its base."""
        from rl.weights.names import adapter_tensors

        adapter = self._config.learner.adapter
        if adapter is None or adapter.publish == "merged":
            return partial(self._tensors, is_merged=True), None
        return partial(adapter_tensors, self._learner.model), partial(self._tensors, is_merged=False)

    def _tensors(self, *, is_merged: bool) -> "Iterator[tuple[str, Tensor]]":
        from rl.weights.names import checkpoint_tensors

        learner, arithmetic = self._learner, self._config.precision.arithmetic
        return checkpoint_tensors(learner.model, arithmetic, learner.folded.quantised, is_merged=is_merged)

    def save(self, folder: Path, *, with_policy: bool = True) -> dict[str, WrittenFile]:
        """As `LearnerGroup.save`; tells the files that this rank wrote."""
        from rl.learner.state import own_files

        self._learner.save_state(folder, with_policy=with_policy)
        if self._ranks.is_first:
            policy = policy_in(folder)
            policy.mkdir(exist_ok=True)
            copy_chat(self._policy_path, policy)
        return sync_and_hash(folder, own_files(folder, self._ranks))

    def shutdown(self) -> None:
        for end in (self._publisher, self._sender):
            if end is not None:
                end.close()
        self._published.clear()
        if self._ranks.num > 1:  # else a process group is not the learner's, but an engine's in the same process
            from rl.ranks import leave_ranks

            leave_ranks()
