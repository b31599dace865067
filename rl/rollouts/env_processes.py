"""Which environments have processes of their own, and which run on threads of the worker?

An environment that computes holds the interpreter lock, so on threads it stops the engine, which runs in the same
process. Each of its episodes then gets a process of its own, forked from one that has loaded the environment
(`rl.rollouts.env_zygote`): a crash, a hang or used-up memory costs that episode only. A process costs milliseconds,
more than a whole episode of a light environment, so by default an environment begins on threads and moves when its
calls have been measured to be expensive.
"""

import asyncio
import logging
from dataclasses import dataclass

from rl.config.experiment import ExperimentConfig
from rl.rollouts.env_zygote import Setup
from rl.rollouts.zygote_handle import ProcessEnded, ZygoteHandle

logger = logging.getLogger(__name__)
EXPENSIVE_S = 0.05
"""CPU seconds an episode from which on a process pays: several times what it costs (`process_episode_ms` of
`benchmarks.environments`)."""
MEASURED_S = 2.0
"""CPU seconds of an environment before it is judged."""
MOVED = (
    "%s computes at least %.2f s an episode, while the engine waits; its next episodes run in processes of their own"
    " (environments.ID.process: true does so from the start, false never)"
)


@dataclass(slots=True)
class _Cost:
    """What an environment has cost on threads."""

    num_sessions: int = 0
    """Also those that have not ended."""
    cpu_s: float = 0.0


class EnvProcesses:
    """The zygotes of a worker, by environment."""

    def __init__(self, config: ExperimentConfig) -> None:
        self._config = config
        self._costs = {env_id: _Cost() for env_id, one in config.environments.items() if one.process is None}
        """Of environments that have not been judged yet."""
        self._started: list[ZygoteHandle] = []
        self._zygotes = {env_id: self._start(env_id) for env_id, one in config.environments.items() if one.process}
        self._loading = tuple(self._zygotes.values())
        self._moving: dict[str, asyncio.Task[None]] = {}
        self.slots = asyncio.Semaphore(config.rollout.num_computing)
        """Of processes that compute."""

    async def loaded(self) -> None:
        """Wait, the first time, for the environments that have processes from the start: a rollout that waits for
        them holds up the engine. What fails here fails again in the episodes, which report it.
        """
        loading, self._loading = self._loading, ()
        await asyncio.gather(*(zygote.ready() for zygote in loading), return_exceptions=True)

    def zygote_of(self, env_id: str) -> ZygoteHandle | None:
        """What the environment's next episode is forked from; None if it runs on threads."""
        if (cost := self._costs.get(env_id)) is not None:
            cost.num_sessions += 1
        return self._zygotes.get(env_id)

    def spent_on_thread(self, env_id: str, cpu_s: float) -> None:
        """A call of the environment took so much CPU time of a thread. Raises nothing: the call's result is good."""
        if (cost := self._costs.get(env_id)) is None:
            return
        cost.cpu_s += cpu_s
        if cost.cpu_s >= max(MEASURED_S, EXPENSIVE_S * cost.num_sessions):
            del self._costs[env_id]
            logger.warning(MOVED, env_id, cost.cpu_s / max(1, cost.num_sessions))
            self._moving[env_id] = asyncio.get_running_loop().create_task(self._move(env_id))

    def close(self) -> None:
        """End all processes."""
        for moving in self._moving.values():
            moving.cancel()
        for zygote in self._started:
            zygote.close()

    def _start(self, env_id: str) -> ZygoteHandle:
        every_options = self._config.environments[env_id].every_options
        zygote = ZygoteHandle(Setup(env_id, every_options, self._config.rollout, self._config.run_dir))
        self._started.append(zygote)
        return zygote

    async def _move(self, env_id: str) -> None:
        try:
            zygote = self._start(env_id)
            await zygote.ready()
            self._zygotes[env_id] = zygote
        except (ProcessEnded, OSError) as error:  # such as no memory for another process
            logger.warning("%s stays on threads: %s", env_id, error)
        finally:
            del self._moving[env_id]
