"""What does a worker do? It is the Ray actor that holds one engine and plays many rollouts at once."""

import asyncio
import contextlib
import ctypes
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from rl.cluster.notes import Notes
from rl.config.experiment import ExperimentConfig
from rl.data_types import Group, Task
from rl.engine.work_times import Work
from rl.importing import without_collector
from rl.process_memory import resident_mib
from rl.rollouts.course import EngineFiles
from rl.run_log import join_run_log
from rl.weights.source import WeightSource

if TYPE_CHECKING:
    from rl.engine.protocol import Lane

logger = logging.getLogger(__name__)


class Keeper(Protocol):
    """Keeps a group that has ended, whatever becomes of the processes that played it (`rl.runs.spool`)."""

    def write(self, group: Group) -> None: ...

    def read(self) -> Group | None: ...


@dataclass(frozen=True, slots=True)
class GroupSpec:
    """A group to play: `group_size` rollouts of one task."""

    group_id: str
    task: Task
    group_size: int
    temperature: float
    keeper: Keeper | None = None

    def kept(self) -> Group | None:
        """The group, if it has ended and was kept."""
        return self.keeper.read() if self.keeper else None


@dataclass(frozen=True, slots=True)
class Played:
    """The groups of a call in order, and the worker's notes."""

    groups: list[Group]
    notes: tuple[str, ...]


class RolloutWorker:
    """Plays groups; loads new weights while rollouts are in flight."""

    def __init__(self, config: ExperimentConfig, policy_path: Path, variables: Mapping[str, str] | None = None) -> None:
        """`variables` are those of the environment by which environments find what the run serves for them."""
        join_run_log(config.run_dir, "worker")
        os.environ |= variables or {}  # before processes of environments start
        self._notes = Notes()
        with without_collector():
            from envs.loading import load_data
            from envs.sandbox import require_level
            from rl.chat.chat import load_chat
            from rl.engine.vllm_core import VllmEngine
            from rl.rollouts.env_processes import EnvProcesses
            from rl.rollouts.env_runner import EnvRunner

        if config.weights.is_live:
            from rl.cluster.network import choose_network_interface

            choose_network_interface(config.ray.network_interface)
        synchronous = config.train.max_staleness == 0
        self._config = config
        self._num_groups = 0
        self._chat = load_chat(policy_path, config.policy.chat)
        with without_collector():  # it imports most of vLLM
            self._engine = VllmEngine(policy_path, config, config.rollout.lockstep_steps if synchronous else 0)
        logger.info("the engine serves %s", policy_path)
        self._runner = EnvRunner(config.rollout.num_env_threads)
        require_level(config.rollout.sandbox_level)
        self._processes = EnvProcesses(config)
        for env_id, environment in config.environments.items():
            if not environment.process:
                for options in environment.every_options:
                    load_data(env_id, options)

    async def play_groups(self, specs: Sequence[GroupSpec]) -> Played:
        """Play the groups. Their lanes open together; a rollout begins when its lane has a seat in the engine.

        Raises `EngineError` when the engine is dead: this worker must be replaced.
        """
        lanes = self._engine.open_lanes(sum(spec.group_size for spec in specs))
        calls = []
        for spec in specs:
            calls.append(self._play_group(spec, lanes[: spec.group_size]))
            lanes = lanes[spec.group_size :]
        self._num_groups += len(specs)
        try:
            groups = await asyncio.gather(*calls)
        finally:
            self._num_groups -= len(specs)
        self._engine.check_alive()
        return Played(groups, self._notes.take())

    async def _play_group(self, spec: GroupSpec, lanes: "Sequence[Lane]") -> Group:
        from rl.rollouts.group_score import with_group_scores
        from rl.rollouts.play import Player, play

        player = Player(self._config, self._chat, self._engine, self._runner, spec.temperature, self._processes)
        rollouts = await asyncio.gather(
            *(play(player, spec.task, spec.group_id, member, lane) for member, lane in enumerate(lanes))
        )
        group = Group(spec.group_id, spec.task, await with_group_scores(player, spec.task, rollouts))
        if spec.keeper:
            await asyncio.to_thread(spec.keeper.write, group)  # at once: others of the call may play for long
        return group

    async def doing(self) -> str:
        """What its rollouts do, in words. That it answers shows that its process lives."""
        return f"{self._engine.describe()}; {self._num_groups} groups are played or scored"

    async def work(self) -> Work:
        """What it did since the last call, and what its process holds."""
        return Work(self._engine.work_times(), resident_mib())

    async def load_weights(self, source: WeightSource) -> str:
        """Serve this version from the next engine step on; returns the hash of what was loaded."""
        digest = await self._engine.load_weights(source)
        await asyncio.to_thread(_give_back_memory)  # once a step
        return digest

    async def wait_until_ready(self) -> None:
        """Returns once the engine is up and environments are loaded; after that, at once."""
        await self._processes.loaded()

    async def record(self, files: EngineFiles) -> None:
        """Record what the engine does from now on, and follow the script if there is one."""
        from rl.engine.record import Recorder
        from rl.engine.script import Script

        train = self._config.train
        timeout_s = train.collect_timeout_s + train.update_timeout_s  # the longest that the loop may take to come round
        script = Script(files.script, files.difference, timeout_s, files.ended_groups) if files.script else None
        self._engine.record(Recorder(files.record), script)

    async def token_texts(self) -> list[str]:
        """The text of every token by its id."""
        return self._chat.token_texts()

    async def shutdown(self) -> None:
        self._processes.close()  # first: it is quick, and an engine may use up the time
        self._engine.shutdown()


def _give_back_memory() -> None:
    """Let glibc return what has been freed, so that a worker does not grow over thousands of steps."""
    with contextlib.suppress(OSError, AttributeError):  # of another C library
        ctypes.CDLL(None).malloc_trim(0)
