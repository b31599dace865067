"""Which environments are in the training mixture, with which weight, options, thinking budget and algorithm each?"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from envs.registry import is_built_in
from envs.session import EnvFailure
from rl.algorithms import AnyAlgorithm
from rl.algorithms.shaping import AnyShaping
from rl.config.budgets import read_budget
from rl.config.section import NonNegative, Positive, Section, Share
from rl.data_types import Budget


class MeasuredConfig(Section):
    """Pass rates that the run measures itself, of the groups that it trains: the share of rollouts with the full
    reward, before shaping."""

    weight: Annotated[float, Field(gt=0, le=1)] = 0.3
    """Weight of a step in the moving mean of a pass rate, `(1 - weight) * before + weight * of_the_step`. The first
    step that measures one counts whole if no profile has it."""
    solved_pass_rate: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Pass rate from which a task, or set of options, counts as solved and drops out."""
    solved_tries: Positive = 16
    """Rollouts of it that must have been measured before."""
    solved_share: Share = 0.05
    """Share of the tasks that is drawn from solved ones, all alike, while others are left. One that is failed again
    counts as solved no more."""
    plateau_steps: Positive | None = None
    """Steps without progress after which the pass rates that are older are forgotten, and measured anew: over these
    steps tasks were on average not passed more often than their pass rates said. Steps count that trained tasks which
    had a pass rate. null forgets nothing."""


class CurriculumConfig(Section):
    """A curriculum: which training tasks are drawn, by their pass rates. Give `profile`, `num_tasks` or `option_sets`.

    Pass rates are those of the profile, or those that the run measures; without either, all are drawn alike.
    """

    profile: Path | None = None
    """File written by `python -m envs profile ROLLOUTS --out FILE`; its tasks are drawn. It must not change during a
    run."""
    num_tasks: Positive | None = None
    """So many tasks of the environment are drawn again and again, the same for every seed of a run."""
    option_sets: Annotated[tuple[dict[str, object], ...], Field(min_length=2)] | None = None
    """New tasks are drawn with one of these sets of options, such as `[{level: 1}, {level: 2}]`, which are added to
    `options`. Evaluations take the sets in turn."""
    measured: MeasuredConfig | None = None
    """Lets the run measure the pass rates; null keeps those of the profile."""
    num_steps: Positive | None = None
    """Steps over which the mean pass rate of the drawn tasks falls from `first_pass_rate` to `last_pass_rate`; null is
    `last_pass_rate` from the first step on."""
    first_pass_rate: Share = 0.8
    """Mean pass rate of the tasks drawn at the first step."""
    last_pass_rate: Share = 0.2
    """Mean pass rate of the tasks drawn from step `num_steps` on."""
    spread: Annotated[float, Field(gt=0)] = 0.15
    """Standard deviation of the drawn tasks' pass rates around that mean."""

    @model_validator(mode="after")
    def _one_source_of_tasks(self) -> "CurriculumConfig":
        given = [name for name in ("profile", "num_tasks", "option_sets") if getattr(self, name) is not None]
        if len(given) != 1:
            told = " and ".join(given) or "none"
            raise ValueError(f"a curriculum draws from one of profile, num_tasks and option_sets, and {told} is given")
        return self

    @model_validator(mode="after")
    def _option_sets_differ(self) -> "CurriculumConfig":
        sets = self.option_sets or ()
        if not all(sets) or len(set(option_set_names(sets))) < len(sets):
            raise ValueError(f"option_sets must differ and not be empty, but they are: {', '.join(map(str, sets))}")
        return self

    @model_validator(mode="after")
    def _keys_have_a_meaning(self) -> "CurriculumConfig":
        keys = ("num_steps", "first_pass_rate", "last_pass_rate", "spread")
        # by value: the configuration that a run writes has every key
        given = [key for key in keys if getattr(self, key) != type(self).model_fields[key].default]
        if given and self.profile is None and self.measured is None:
            raise ValueError(
                f"{given[0]} says which pass rates are drawn, but nothing gives any: add `measured: {{}}`, or remove it"
            )
        if "first_pass_rate" in given and self.num_steps is None:
            raise ValueError("first_pass_rate needs num_steps, over which the mean falls from there: add it")
        return self


def option_set_names(sets: Sequence[Mapping[str, object]]) -> list[str]:
    """Names of sets of options in metrics, such as `level_2`: of the options in which they differ, in characters that
    every tracker takes. An option that a set does not have is `default` there.
    """
    values = {
        key: [one.get(key, "default") for one in sets] for key in dict.fromkeys(key for one in sets for key in one)
    }
    keys = [key for key, every in values.items() if any(value != every[0] for value in every)]
    return [re.sub(r"[^\w.-]", "_", "-".join(f"{key}_{values[key][n]}" for key in keys)) for n in range(len(sets))]


class BudgetCurriculumConfig(Section):
    """A curriculum of thinking budgets, from wide to narrow: budgets that are numbers begin as multiples of themselves.
    Random budgets need none: `budget` is a distribution."""

    num_steps: Positive
    """Steps over which the factor falls from `first_factor` to 1."""
    first_factor: Annotated[float, Field(gt=1)] = 2.0
    """Factor of the budgets at the first step."""

    def at(self, budget: Budget, step: int) -> Budget:
        """The budget of a task of this step."""
        if not isinstance(budget, int):
            return budget
        return round(budget * (1.0 + (self.first_factor - 1.0) * max(0.0, 1.0 - step / self.num_steps)))


class EnvironmentConfig(Section):
    """One environment of the mixture."""

    weight: Annotated[float, Field(gt=0)] = 1.0
    """Its share of the training tasks, relative to the other environments' weights."""
    budget: dict[Budget, Annotated[float, Field(gt=0)]] = Field(default={"unlimited": 1.0}, min_length=1)
    """Thinking budget of each reply: `off`, `unlimited`, a number of tokens, or an effort, such as `low`, which the
    prompt states and nothing enforces. A mapping from budgets to weights, such as `{off: 1, 32: 2, unlimited: 1}`,
    draws one budget per task."""
    budget_curriculum: BudgetCurriculumConfig | None = None
    """Wider thinking budgets at first; evaluations and tasks of a profile have those of `budget`."""
    options: dict[str, object] = Field(default_factory=dict)
    """The environment's own options, such as its difficulty; `python -m envs info ID` lists them."""
    loss: AnyAlgorithm | None = None
    """The algorithm that trains this environment's rollouts; null uses the experiment's `loss`."""
    shaping: tuple[AnyShaping, ...] = ()
    """Changes of rewards before advantages are computed, applied one after the other. Metrics and evaluations keep the
    rewards of the environment."""
    process: bool | None = None
    """Whether each episode runs in a process of its own, beside the engine instead of on a thread of its process. For
    environments that compute: one that holds Python's interpreter lock stops the engine. A crash, a hang or used-up
    memory then costs its own episode only. null begins on threads and changes to processes once the environment's
    synchronous code has been measured to take 0.05 s of CPU time or more an episode."""
    curriculum: CurriculumConfig | None = None
    """Draws training tasks by their pass rates instead of new ones. Those of a profile keep its options and budgets."""

    @property
    def every_options(self) -> tuple[dict[str, object], ...]:
        """The options of its tasks: `options`, or several sets of a curriculum; those of a profile's tasks left out."""
        sets = (self.curriculum and self.curriculum.option_sets) or ({},)
        return tuple({**self.options, **options} for options in sets)

    @property
    def options_key(self) -> tuple[str, ...]:
        """Where `every_options` are given, for errors."""
        return ("curriculum", "option_sets") if self.curriculum and self.curriculum.option_sets else ("options",)

    @field_validator("budget", mode="before")
    @classmethod
    def _one_budget_or_several(cls, value: object) -> object:
        budgets = value if isinstance(value, dict) else {value: 1.0}
        return {read_budget(budget): weight for budget, weight in budgets.items()}

    @model_validator(mode="after")
    def _shapings_have_tasks(self) -> "EnvironmentConfig":
        for number, shaping in enumerate(self.shaping):
            narrowing = [str(budget) for budget in shaping.budgets if isinstance(budget, int)]
            if narrowing and self.budget_curriculum is not None:
                raise ValueError(
                    f"shaping.{number}.budgets names {', '.join(narrowing)}, but budget_curriculum gives tasks wider"
                    f" budgets until step {self.budget_curriculum.num_steps}, which would not be shaped: remove the"
                    f" numbers of shaping.{number}.budgets (without the key all tasks are shaped), or remove"
                    " budget_curriculum"
                )
            unknown = [str(budget) for budget in shaping.budgets if budget not in self.budget]
            if unknown and self.curriculum is None:  # whose tasks may have other budgets
                raise ValueError(
                    f"shaping.{number}.budgets names {', '.join(unknown)}, which no task has: budget is"
                    f" {', '.join(map(str, self.budget))}"
                )
        return self


def environment_fix(env_id: str, failure: EnvFailure) -> str:
    """How to mend an environment that cannot be made or opened. The code of our own is not for users to mend."""
    is_ours = is_built_in(env_id)
    if failure.outcome == "env_timeout":
        other = "end other programs" if is_ours else "read data in load_data (envs/README.md), which has more time"
        return f"raise rollout.reset_timeout_s, or {other}"
    cause = f"find the cause with: python -m envs check {env_id};" if is_ours else "fix the package that provides it,"
    return f"{cause} or remove the environment"


class BudgetConfig(Section):
    """How the engine enforces thinking budgets that are a number of tokens."""

    grace_tokens: NonNegative = 16
    """When the budget is used up, reasoning ends at the next line end, or after this many more tokens."""
    answer_tokens: Positive = 32
    """Tokens of each reply that are reserved for the answer; reasoning ends early if it would leave fewer."""
    closing_text: str = "\n"
    """Text that the engine inserts before `</think>` when it ends the reasoning."""
