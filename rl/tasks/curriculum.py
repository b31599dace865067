"""Which task does the curriculum of an environment draw next? From easy to hard, by a policy's pass rates.

`python -m envs profile ... --out FILE` writes pass rates. Tasks that were always passed teach nothing and are skipped.
The pass rates of the others are drawn from a Gaussian, however many tasks have each, around a mean that falls linearly
over the run (Nemotron 3 Nano, section 3.2, which gives the shape but no numbers).
"""

import math
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs.errors import InputError
from envs.json_lines import JsonLineError, read_rows
from rl.config.environments import CurriculumConfig
from rl.data_types import Budget


class CurriculumError(InputError):
    """A profile that no curriculum can be made of."""


@dataclass(frozen=True, slots=True)
class ProfiledTask:
    seed: int
    options: Mapping[str, Any]
    budget: Budget | None
    """The thinking budget of the profile; None if the profile has none."""
    pass_rate: float


class Curriculum:
    """Draws tasks of one environment; a function of the configuration, the profile, the step and a seed."""

    def __init__(self, env_id: str, config: CurriculumConfig) -> None:
        """Raises `CurriculumError` for a profile without tasks to learn from."""
        self._config = config
        self.tasks = read_profile(config.profile, env_id)
        self._num_by_rate = Counter(task.pass_rate for task in self.tasks)

    def draw(self, step: int, seed: int) -> ProfiledTask:
        mean = self.mean_pass_rate(step)
        distances = [(task.pass_rate - mean) / self._config.spread for task in self.tasks]
        # each pass rate is drawn as often as the Gaussian says, however many tasks have it
        num_alike = [self._num_by_rate[task.pass_rate] for task in self.tasks]
        weights = [math.exp(-0.5 * distance**2) / num for distance, num in zip(distances, num_alike, strict=True)]
        if not any(weights):  # none is near: take the nearest
            return min(self.tasks, key=lambda task: abs(task.pass_rate - mean))
        (task,) = random.Random(seed).choices(self.tasks, weights)
        return task

    def __str__(self) -> str:
        rates = [task.pass_rate for task in self.tasks]
        told = f"{len(rates)} tasks, passed {min(rates):.0%} to {max(rates):.0%} of the time"
        return f"{told}, with the profile's options and budgets"

    def mean_pass_rate(self, step: int) -> float:
        """The mean pass rate of the tasks that this step draws."""
        first, last = self._config.first_pass_rate, self._config.last_pass_rate
        return first + (last - first) * min(1.0, step / self._config.num_steps)


def read_profile(path: Path, env_id: str) -> list[ProfiledTask]:
    """The environment's training tasks that were not always passed, as the file orders them."""
    try:
        rows = read_rows(path, "env_id", "seed", "split", "options", "pass_rate", "kind")
    except JsonLineError as error:
        raise CurriculumError(f"{error}; write one with: python -m envs profile ROLLOUTS --out {path}") from error
    trained = (row for row in rows if row["env_id"] == env_id and row["split"] == "train")
    own = [row for row in trained if row["kind"] != "too few tries"]
    tasks = [
        ProfiledTask(row["seed"], row["options"], row.get("budget"), row["pass_rate"])
        for row in own
        if row["pass_rate"] < 1.0
    ]
    if not tasks:
        raise CurriculumError(
            f"{path} has {len(own)} training tasks of {env_id} with several tries, and none that was not always passed;"
            " profile more tasks (envs eval --split train), or harder ones"
        )
    return tasks
