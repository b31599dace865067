"""How do runs differ: in their configuration, their scores and their speed?"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from envs.errors import InputError
from rl.runs.budget_curves import TITLE, budget_curves, budget_rows
from rl.runs.drawing import png
from rl.runs.files import storing
from rl.runs.history import History, read_history
from rl.runs.html import image
from rl.runs.settings import TITLE as OF_SETTINGS
from rl.runs.settings import setting_rows, settings_figure, settings_of

NOT_COMPARED = ("run_dir",)
"""Keys that differ between any two runs."""
TOGETHER = "held-out reward, seeds of a setting together"
LEGEND = (
    "reward ± standard error; mismatch: how far the learner's probabilities of sampled tokens are from the engine's,"
    " 1 if they are equal (docs/metrics.md)"
)


class NoSettingsError(InputError):
    """No two runs differ in their seed alone."""


def print_comparison(
    run_dirs: Sequence[Path], page: Path | None = None, figure: Path | None = None, console: Console | None = None
) -> None:
    """Print what differs between the runs, and write it to an HTML page too if one is given; `figure` is a PNG file of
    the runs by setting (`rl.runs.settings`).

    Raises `NoRunError` and what else `read_history` raises, `NoSettingsError`, and `StorageError` for the page.
    """
    console = console or Console(record=page is not None)
    histories = [read_history(run_dir) for run_dir in run_dirs]
    names = [history.run.path.resolve().name for history in histories]
    rows = configuration_differences(histories)
    settings = settings_of(histories)
    if figure is not None and not settings:
        raise NoSettingsError(
            "--figure draws several seeds of a run together, and no two of these run folders are named alike but for"
            " their seed at the end, as bound_1_0 and bound_1_1; rename them, or leave --figure out"
        )
    print_rows(console, "configuration: keys that differ", "key", names, rows)
    print_rows(console, "scores on held-out tasks (never trained), and speed", "", names, results(histories))
    console.print(LEGEND, style="dim")
    if of_budgets := budget_rows(histories):
        print_rows(console, "held-out accuracy by thinking budget", "", names, of_budgets)
    if settings:
        print_rows(console, TOGETHER, "", list(settings), setting_rows(settings))
    by_setting = png(settings_figure(settings)) if settings and (page or figure) else None
    if figure is not None and by_setting is not None:
        with storing(figure):
            figure.write_bytes(by_setting)
    if page is not None:
        by_budget = budget_curves(histories, names)
        drawings = {OF_SETTINGS: by_setting, TITLE: png(by_budget) if by_budget else None}
        drawn = "".join(f"<h2>{title}</h2>{image(title, one)}" for title, one in drawings.items() if one)
        with storing(page):
            page.write_text(console.export_html().replace("</body>", f"{drawn}</body>"), encoding="utf-8")


def configuration_differences(histories: Sequence[History]) -> list[list[str]]:
    """A row for each key whose value is not the same in all runs: the key, and each run's value."""
    configs = [_flat(yaml.safe_load(history.config_text) or {}) for history in histories]
    keys = sorted({key for config in configs for key in config if key.split(".")[0] not in NOT_COMPARED})
    rows = [[key, *(str(config.get(key, "-")) for config in configs)] for key in keys]
    return [row for row in rows if len(set(row[1:])) > 1]


def results(histories: Sequence[History]) -> list[list[str]]:
    """Rows of scores and speed. Of two runs, each score also has the second's lead over the first."""
    rows = []
    for env_id in sorted({env_id for history in histories for env_id in history.env_ids}):
        for label in ("before", "after"):
            scores = [score(history, label, env_id) for history in histories]
            if any(scores):
                rows.append([f"{env_id} {label}", *(number_text(score) for score in scores), *_lead(scores)])
    quantities: Mapping[str, Callable[[History], float | None]] = {
        "steps": lambda history: len(history.steps),
        "seconds a step": lambda history: _mean(history, "seconds"),
        "sampled tokens/s": lambda history: _mean(history, "tokens_per_s/sampled"),
        "trained tokens/s": lambda history: _mean(history, "tokens_per_s/trained"),
        "mismatch": lambda history: _mean(history, "update/mismatch"),
    }
    for name, quantity in quantities.items():
        values = [quantity(history) for history in histories]
        rows.append([name, *("-" if value is None else f"{value:,.6g}" for value in values)])
    return rows


def score(history: History, label: str, env_id: str) -> tuple[float, float] | None:
    """Mean reward and its standard error; None where it was not measured."""
    line = history.evaluation(label) or {}
    reward = line.get(f"reward/{env_id}")
    return None if reward is None else (reward, line.get(f"stderr/{env_id}") or 0.0)


def number_text(score: tuple[float, float] | None) -> str:
    return "-" if score is None else f"{score[0]:.3f} ± {score[1]:.3f}"


def _lead(scores: Sequence[tuple[float, float] | None]) -> list[str]:
    if len(scores) != 2 or scores[0] is None or scores[1] is None:
        return []
    (first, first_error), (second, second_error) = scores[0], scores[1]
    return [f"{second - first:+.3f} ± {math.hypot(first_error, second_error):.3f}"]


def _mean(history: History, name: str) -> float | None:
    _, values = history.series(name)
    return fmean(values) if values else None


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """The values of a configuration by dotted key; lists are values."""
    if not isinstance(tree, Mapping) or (not tree and prefix):
        return {prefix: tree}
    return {
        key: value
        for name, below in tree.items()
        for key, value in _flat(below, f"{prefix}.{name}" if prefix else str(name)).items()
    }


def print_rows(console: Console, title: str, first: str, names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print the rows as a table, or one value below another where a table of their width would break ids apart."""
    width = max((len(row) - 1 for row in rows), default=len(names))
    columns = [first, *names, *["difference"] * (width - len(names))]
    padded = [[*row, *[""] * (len(columns) - len(row))] for row in rows]
    lengths = [max(map(cell_len, cells)) for cells in zip(columns, *padded, strict=True)]
    if sum(lengths) + 3 * len(columns) + 1 <= console.width:
        table = Table(*columns, title=title, title_justify="left")
        for row in rows:
            table.add_row(*map(Text, row))  # lists must not be read as markup
        console.print(table)
        return
    console.print(Text(title, style="italic"))
    for label, *values in rows:
        console.print(Text(label, style="bold"), soft_wrap=True)
        for column, value in zip(columns[1:], values, strict=False):
            console.print(Text(f"  {column:<{max(map(len, columns[1:]))}}  {value}"), soft_wrap=True)
