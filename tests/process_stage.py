"""Plays `tests.process_envs` with a scripted engine in processes, as a worker does."""

import asyncio
from pathlib import Path
from typing import Any

from rl.data_types import Rollout, Task
from rl.rollouts.env_processes import EnvProcesses
from rl.rollouts.env_runner import EnvRunner
from rl.rollouts.play import Player, play
from tests.makers import make_config
from tests.scripted import CharacterChat, ScriptedEngine

OBEDIENT = "tests.process_envs:Obedient"


class Stage:
    """A worker's processes of one environment, on a loop that outlasts a test."""

    def __init__(
        self, folder: Path, env_id: str = OBEDIENT, process: bool | None = True, step_timeout_s: float = 0.5
    ) -> None:
        self.folder, self.env_id = folder, env_id
        self.options = {"folder": str(folder)}
        self.rollout = {
            "num_retries": 0,
            "step_timeout_s": step_timeout_s,
            "env_memory_mib": 64,
            "num_env_processes": 2,
        }
        self.runner = asyncio.Runner()
        self.config = make_config(
            folder,
            environments={env_id: {"process": process, "options": self.options}},
            policy={"path": "x", "max_tokens": 300},
            rollout=self.rollout,
        )
        self.processes = EnvProcesses(self.config)

    def play(self, *replies: str, num: int = 1, **rollout: Any) -> list[Rollout]:
        """Rollouts of one group, all at once; member k begins with the k-th of several first replies, joined by `|`."""
        config = self.config.model_copy(update={"rollout": self.config.rollout.model_copy(update=rollout)})

        async def run() -> list[Rollout]:
            rollouts = []
            for member in range(num):
                said = iter([one.split("|")[member % len(one.split("|"))] for one in replies] * 2)
                engine: Any = ScriptedEngine(lambda *_, said=said: next(said))
                player = Player(config, CharacterChat(), engine, EnvRunner(4), 1.0, self.processes)  # pyright: ignore[reportArgumentType]
                (lane,) = engine.open_lanes(1)
                task = Task(0, self.env_id, 7, "train", "unlimited", self.options)
                rollouts.append(play(player, task, "0-0", member, lane))
            return list(await asyncio.gather(*rollouts))

        return self.runner.run(run())

    def notes(self, what: str) -> list[int]:
        """The processes that wrote this."""
        path = self.folder / what
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    async def _close(self) -> None:
        self.processes.close()

    def close(self) -> None:
        self.runner.run(self._close())
        self.runner.close()
