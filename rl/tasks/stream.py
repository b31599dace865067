"""Which task of the mixture comes next? The task stream is a pure function from an ordinal to a task.

The mixture is exact: after any number of tasks, each environment's count differs from its share by less than one
(stride scheduling), so no window of steps starves an environment.
"""

from collections.abc import Mapping

from envs.text_env import Split
from rl.config.environments import EnvironmentConfig
from rl.data_types import Task
from rl.tasks.curriculum import Curriculum
from rl.tasks.seeds import derive_seed, draw_budget


class TaskStream:
    """The endless stream of training tasks of one run; `task(n)` depends on nothing but the configuration and n."""

    def __init__(self, environments: Mapping[str, EnvironmentConfig], seed: int, num_prompts: int) -> None:
        """`num_prompts` is the number of tasks per step. Raises `CurriculumError`."""
        self._environments = environments
        self._seed = seed
        self._num_prompts = num_prompts
        self._curricula = {
            env_id: Curriculum(env_id, environment.curriculum)
            for env_id, environment in environments.items()
            if environment.curriculum is not None
        }
        total = sum(environment.weight for environment in environments.values())
        self._shares = {env_id: environment.weight / total for env_id, environment in environments.items()}
        self._counts = dict.fromkeys(environments, 0)
        self._env_ids: list[str] = []

    def task(self, ordinal: int) -> Task:
        while len(self._env_ids) <= ordinal:
            self._env_ids.append(self._most_behind())
        env_id = self._env_ids[ordinal]
        environment = self._environments[env_id]
        seed = derive_seed("train", self._seed, ordinal)
        budget = draw_budget(environment.budget, derive_seed("budget", self._seed, ordinal))
        step = ordinal // self._num_prompts
        if environment.budget_curriculum is not None:
            budget = environment.budget_curriculum.at(budget, step)
        if (curriculum := self._curricula.get(env_id)) is None:
            return Task(ordinal, env_id, seed, "train", budget, environment.options)
        drawn = curriculum.draw(step, seed)
        return Task(ordinal, env_id, drawn.seed, "train", drawn.budget or budget, drawn.options)

    def described(self) -> list[str]:
        """A line for each environment whose tasks come from a profile."""
        return [f"curriculum of {env_id}: {curriculum}" for env_id, curriculum in self._curricula.items()]

    def _most_behind(self) -> str:
        """The environment whose count lags its share most; the first named wins a tie."""
        position = len(self._env_ids) + 1
        env_id = max(self._shares, key=lambda name: position * self._shares[name] - self._counts[name])
        self._counts[env_id] += 1
        return env_id


def evaluation_tasks(
    environments: Mapping[str, EnvironmentConfig], num_tasks: int, split: Split = "heldout"
) -> list[Task]:
    """The evaluation set: `num_tasks` tasks of the split per environment, the same for every run seed."""
    tasks: list[Task] = []
    for env_id, environment in environments.items():
        for index in range(num_tasks):
            seed = derive_seed(split, env_id, index)
            budget = draw_budget(environment.budget, derive_seed(f"{split} budget", env_id, index))
            tasks.append(Task(len(tasks), env_id, seed, split, budget, environment.options))
    return tasks
