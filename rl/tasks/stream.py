"""Which task of the mixture comes next? The task stream is a function from an ordinal to a task.

It is a pure function of the configuration, but for environments whose curriculum follows pass rates that the run
measures (`rl.tasks.curriculum`): there it also depends on these, until the ordinal is started.

The mixture is exact up to a task or two: the environment that is furthest behind its share comes next. After any number
of tasks, none of N environments is ahead of its share by a whole task, nor behind it by more than 1/2 + 1/3 + ... + 1/N
tasks: 0.83 for three, 1.83 for nine. (The mean lag of the k furthest behind exceeds that of the k + 1 furthest by at
most 1 / (k + 1), and that of all is 0.) So no window of steps starves an environment.
"""

from collections.abc import Collection, Mapping, Sequence

from envs.json_lines import JsonObject
from envs.text_env import Split
from rl.config.environments import EnvironmentConfig
from rl.data_types import Group, Task
from rl.tasks.curriculum import Curriculum
from rl.tasks.seeds import derive_seed, draw_budget


class TaskStream:
    """The endless stream of training tasks of one run."""

    def __init__(
        self,
        environments: Mapping[str, EnvironmentConfig],
        seed: int,
        num_prompts: int,
        state: Mapping[str, JsonObject] | None = None,
    ) -> None:
        """`num_prompts` is the number of tasks per step, `state` what `state` returned. Raises `CurriculumError`."""
        self._environments = environments
        self._seed = seed
        self._num_prompts = num_prompts
        self._curricula = {
            env_id: Curriculum(env_id, environment, (state or {}).get(env_id))
            for env_id, environment in environments.items()
            if environment.curriculum is not None
        }
        total = sum(environment.weight for environment in environments.values())
        self._shares = {env_id: environment.weight / total for env_id, environment in environments.items()}
        self._counts = dict.fromkeys(environments, 0)
        self._env_ids: list[str] = []

    def task(self, ordinal: int) -> Task:
        """The task with which an ordinal was started, or would be started now."""
        env_id = self._env_id(ordinal)
        environment = self._environments[env_id]
        seed, step = self._seed_and_step(ordinal)
        budget = draw_budget(environment.budget, derive_seed("budget", self._seed, ordinal))
        if environment.budget_curriculum is not None:
            budget = environment.budget_curriculum.at(budget, step)
        if (curriculum := self._curricula.get(env_id)) is None:
            return Task(ordinal, env_id, seed, "train", budget, environment.options)
        arm = curriculum.arm_of(ordinal, step, seed)
        return Task(ordinal, env_id, seed if arm.seed is None else arm.seed, "train", arm.budget or budget, arm.options)

    def start(self, ordinal: int) -> Task:
        """The task of an ordinal, from now until it is finished."""
        if (curriculum := self._curricula.get(self._env_id(ordinal))) is not None:
            seed, step = self._seed_and_step(ordinal)
            curriculum.start(ordinal, step, seed)
        return self.task(ordinal)

    def finish(self, step: int, groups: Sequence[Group], trained: Collection[str]) -> None:
        """The groups are trained, by the update that made `step`, or masked; `trained` has the ids of the former."""
        for env_id, curriculum in self._curricula.items():
            curriculum.finish(step, [group for group in groups if group.task.env_id == env_id], trained)

    def described(self) -> list[str]:
        """A line for each environment that has a curriculum."""
        return [f"curriculum of {env_id}: {curriculum}" for env_id, curriculum in self._curricula.items()]

    def metrics(self) -> dict[str, float]:
        """Of the groups that were finished last, by the names in `rl.runs.tracking`."""
        return {name: value for one in self._curricula.values() for name, value in one.metrics().items()}

    def notes(self) -> list[str]:
        """What curricula said since the last call."""
        return [note for curriculum in self._curricula.values() for note in curriculum.notes()]

    def state(self) -> dict[str, JsonObject]:
        """For the checkpoint, as JSON: pass rates, and what was drawn for the ordinals in flight."""
        states = {env_id: curriculum.state() for env_id, curriculum in self._curricula.items()}
        return {env_id: state for env_id, state in states.items() if state is not None}

    def _seed_and_step(self, ordinal: int) -> tuple[int, int]:
        return derive_seed("train", self._seed, ordinal), ordinal // self._num_prompts

    def _env_id(self, ordinal: int) -> str:
        while len(self._env_ids) <= ordinal:
            self._env_ids.append(self._most_behind())
        return self._env_ids[ordinal]

    def _most_behind(self) -> str:
        """The environment whose count lags its share most; the first named wins a tie."""
        position = len(self._env_ids) + 1
        env_id = max(self._shares, key=lambda name: position * self._shares[name] - self._counts[name])
        self._counts[env_id] += 1
        return env_id


def evaluation_tasks(
    environments: Mapping[str, EnvironmentConfig], num_tasks: int, split: Split = "heldout"
) -> list[Task]:
    """The evaluation set: `num_tasks` tasks of the split per environment, the same for every run seed. Sets of
    options are taken in turn."""
    tasks: list[Task] = []
    for env_id, environment in environments.items():
        every = environment.every_options
        for index in range(num_tasks):
            seed = derive_seed(split, env_id, index)
            budget = draw_budget(environment.budget, derive_seed(f"{split} budget", env_id, index))
            tasks.append(Task(len(tasks), env_id, seed, split, budget, every[index % len(every)]))
    return tasks
