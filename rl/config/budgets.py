"""How is a thinking budget read from YAML or a command line, and in which words is a policy told of it?"""

from typing import Annotated

from pydantic import BeforeValidator

from rl.data_types import EFFORTS, Budget


def read_budget(budget: object) -> Budget:
    """A word, or a number that may be text. Raises `ValueError`."""
    if budget == "off":
        return "off"
    if budget == "unlimited":
        return "unlimited"
    for effort in EFFORTS:
        if budget == effort:
            return effort
    number = int(budget) if isinstance(budget, str) and budget.removeprefix("-").isdigit() else budget
    if isinstance(number, int) and not isinstance(number, bool) and number > 0:
        return number
    raise ValueError(
        f"a thinking budget is off, unlimited or a number of tokens above 0, or an effort ({', '.join(EFFORTS)}),"
        f" not {budget!r}"
    )


ReadBudget = Annotated[Budget, BeforeValidator(read_budget)]
"""Type of a key that is one budget."""


def budget_text(budget: Budget) -> str:
    """What the last user message says about a budget in tokens or an effort, in the words of Nemotron 3's published
    template and of its recipes.
    """
    if isinstance(budget, int):
        return f"\n\n{{thinking token budget: {budget}}}"
    return effort_text(budget) if budget in EFFORTS else ""


def effort_text(effort: str) -> str:
    """What a user message that asks for a reasoning effort ends with: the marker of Nemotron 3's recipes
    (NVIDIA-NeMo/RL, `EffortLevelsConfig`), here also for other words than its `efficient`.
    """
    return f"\n\n{{reasoning effort: {effort}}}"
