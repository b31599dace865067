"""What does each environment of the mixture contribute, and how much may the policy think in it?"""

from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from rl.algorithms import AnyAlgorithm
from rl.config.section import NonNegative, Positive, Section, Share
from rl.data_types import Budget


class CurriculumConfig(Section):
    """Training tasks from easy to hard, in place of new ones: those of a profile, by how often they were passed."""

    profile: Path
    """What `python -m envs profile ROLLOUTS --out FILE` wrote; it must stay as it is while a run goes on."""
    num_steps: Positive
    """Steps over which the mean pass rate of the drawn tasks falls."""
    first_pass_rate: Share = 0.8
    """Mean pass rate of the tasks drawn at first."""
    last_pass_rate: Share = 0.2
    """Mean pass rate of the tasks drawn from step `num_steps` on."""
    spread: Annotated[float, Field(gt=0)] = 0.15
    """Standard deviation of the drawn tasks' pass rates around that mean."""


class EnvironmentConfig(Section):
    """One environment of the mixture."""

    weight: Annotated[float, Field(gt=0)] = 1.0
    """Its share of the training tasks, relative to the other environments."""
    budget: dict[Budget, Annotated[float, Field(gt=0)]] = Field(default={"unlimited": 1.0}, min_length=1)
    """How much the policy may think in each reply: `off`, `unlimited` or a number of tokens; or several with their
    weights, such as `{off: 1, 32: 2, unlimited: 1}`, from which each task draws one."""
    options: dict[str, object] = Field(default_factory=dict)
    """The environment's own options, such as difficulty; see the environment's README entry."""
    loss: AnyAlgorithm | None = None
    """The algorithm that trains its rollouts, where it is not the experiment's."""
    curriculum: CurriculumConfig | None = None
    """Where training tasks come from, if not drawn anew; they keep the options and budgets they were profiled with."""

    @field_validator("budget", mode="before")
    @classmethod
    def _one_budget_or_several(cls, value: object) -> object:
        budgets = value if isinstance(value, dict) else {value: 1.0}
        return {read_budget(budget): weight for budget, weight in budgets.items()}


def read_budget(budget: object) -> Budget:
    """A budget as YAML and command lines give it: a word, or a number that may be text. Raises `ValueError`."""
    if budget == "off":
        return "off"
    if budget == "unlimited":
        return "unlimited"
    number = int(budget) if isinstance(budget, str) and budget.removeprefix("-").isdigit() else budget
    if isinstance(number, int) and not isinstance(number, bool) and number > 0:
        return number
    raise ValueError(f"a thinking budget is off, unlimited or a number of tokens above 0, not {budget!r}")


class BudgetConfig(Section):
    """How a budget in tokens is enforced."""

    grace_tokens: NonNegative = 16
    """When the budget is used up, reasoning ends with the next line, or after so many more tokens."""
    answer_tokens: Positive = 32
    """Tokens of a reply that are kept for the answer: reasoning ends early where it would leave fewer."""
    closing_text: str = "\n"
    """What the engine writes before `</think>` when it ends the reasoning."""
