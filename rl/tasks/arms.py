"""Among what does a curriculum choose? Arms, in the words of bandits: tasks of a profile, a pool of tasks, or options.

`python -m envs profile ... --out FILE` writes pass rates. Tasks that were always passed teach nothing and are left out.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs.errors import InputError
from envs.json_lines import JsonLineError, read_rows
from rl.config.environments import EnvironmentConfig, option_set_names
from rl.data_types import Budget
from rl.tasks.seeds import derive_seed


class CurriculumError(InputError):
    """A profile that no curriculum can be made of."""


@dataclass(slots=True)
class Arm:
    """A task, or options of which each task is new, and what is known of it."""

    number: int
    """Its place in the curriculum."""
    options: Mapping[str, Any]
    seed: int | None = None
    """None: each task is new."""
    budget: Budget | None = None
    """The thinking budget of the profile; None if the profile has none."""
    name: str = ""
    """Of a set of options."""
    pass_rate: float | None = None
    """None: not measured yet, or forgotten."""
    num_tries: int = 0
    """Rollouts that the run has measured."""
    measured_at: int = 0
    """The newest step that measured it."""

    def measure(self, pass_rate: float, num_tries: int, step: int, weight: float) -> float | None:
        """Move the pass rate towards that of a step, by this weight. Returns the difference, if one was known."""
        before = self.pass_rate
        self.pass_rate = pass_rate if before is None else (1.0 - weight) * before + weight * pass_rate
        self.num_tries += num_tries
        self.measured_at = step
        return None if before is None else pass_rate - before

    def forget(self) -> None:
        self.pass_rate, self.num_tries = None, 0


def arms_of(env_id: str, environment: EnvironmentConfig) -> list[Arm]:
    """The arms of the environment's curriculum. Raises `CurriculumError`."""
    curriculum = environment.curriculum
    assert curriculum is not None
    if curriculum.profile is not None:
        return read_profile(curriculum.profile, env_id)
    if curriculum.num_tasks is not None:
        seeds = (derive_seed("pool", env_id, number) for number in range(curriculum.num_tasks))
        return [Arm(number, environment.options, seed) for number, seed in enumerate(seeds)]
    every = environment.every_options
    names = option_set_names(every)
    return [Arm(number, options, name=name) for number, (name, options) in enumerate(zip(names, every, strict=True))]


def read_profile(path: Path, env_id: str) -> list[Arm]:
    """The environment's training tasks that were not always passed, as the file orders them."""
    try:
        rows = read_rows(path, "env_id", "seed", "split", "options", "pass_rate", "kind")
    except JsonLineError as error:
        raise CurriculumError(f"{error}; write one with: python -m envs profile ROLLOUTS --out {path}") from error
    trained = (row for row in rows if row["env_id"] == env_id and row["split"] == "train")
    own = [row for row in trained if row["kind"] != "too few tries"]
    useful = [row for row in own if row["pass_rate"] < 1.0]
    if not useful:
        raise CurriculumError(
            f"{path} has {len(own)} training tasks of {env_id} with several tries, and none that was not always passed;"
            " profile more tasks (envs eval --split train), or harder ones"
        )
    return [
        Arm(number, row["options"], row["seed"], row.get("budget"), pass_rate=row["pass_rate"])
        for number, row in enumerate(useful)
    ]


def fingerprint(arms: list[Arm]) -> int:
    """The same for the same tasks and options, whatever is known of them."""
    return derive_seed(json.dumps([(arm.options, arm.seed, arm.budget) for arm in arms], default=str, sort_keys=True))
