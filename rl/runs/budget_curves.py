"""What do runs, or checkpoints of one, gain from thinking longer? Accuracy against budget and against tokens used."""

import math
from collections.abc import Sequence

from matplotlib.figure import Figure

from rl.runs.drawing import COLOURS, new_figure, style
from rl.runs.figures import accuracy_error
from rl.runs.history import History

TITLE = "Held-out accuracy against the tokens that replies really used; a point a budget, bars are standard errors"


def budget_rows(histories: Sequence[History]) -> list[list[str]]:
    """A row for each environment and budget that some run was evaluated with (`rl evaluate --budgets`): accuracy, its
    standard error and the mean tokens of a rollout, of each run.
    """
    rows = []
    for env_id in _env_ids(histories):
        for budget in dict.fromkeys(budget for history in histories for budget in history.budgets):
            cells = [_cell(history, budget, env_id) for history in histories]
            if any(cell != "-" for cell in cells):
                rows.append([f"{env_id}, budget {budget}", *cells])
    return rows


def _cell(history: History, budget: str, env_id: str) -> str:
    line = history.budgets.get(budget, {})
    accuracy = line.get(f"accuracy/{env_id}")
    if accuracy is None:
        return "-"
    error, tokens = accuracy_error(line, env_id), line.get(f"reply_tokens/{env_id}", math.nan)
    return f"{accuracy:.3f} ± {error:.3f} at {tokens:.1f} tokens"


def budget_curves(histories: Sequence[History], names: Sequence[str]) -> Figure | None:
    """A panel for each environment with a curve for each run; None if no run was evaluated by budget."""
    env_ids = _env_ids(histories)
    if not env_ids:
        return None
    num_columns = min(2, len(env_ids))
    figure, panels = new_figure(math.ceil(len(env_ids) / num_columns), num_columns)
    for axes, env_id in zip(panels, env_ids, strict=False):
        for number, (history, name) in enumerate(zip(histories, names, strict=True)):
            lines = [line for line in history.budgets.values() if f"accuracy/{env_id}" in line]
            points = sorted(
                (line[f"reply_tokens/{env_id}"], line[f"accuracy/{env_id}"], accuracy_error(line, env_id))
                for line in lines
            )
            if points:
                tokens, accuracies, errors = zip(*points, strict=True)
                colour = COLOURS[number % len(COLOURS)]
                axes.errorbar(tokens, accuracies, errors, color=colour, marker="o", capsize=3, label=name)
        axes.set_title(env_id, fontsize=9, loc="left")
        axes.set_ylim(bottom=0)
        style(axes, "held-out accuracy")
        axes.set_xlabel("tokens of a rollout, mean", fontsize=8)
    panels[0].legend(frameon=False, fontsize=8)
    for unused in panels[len(env_ids) :]:
        unused.remove()
    return figure


def _env_ids(histories: Sequence[History]) -> list[str]:
    lines = [line for history in histories for line in history.budgets.values()]
    return sorted({name.removeprefix("num/") for line in lines for name in line if name.startswith("num/")})
