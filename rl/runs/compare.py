"""How do runs differ: in their configuration, their scores and their speed?"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from rl.runs.history import History, read_history

NOT_COMPARED = ("run_dir",)
"""Keys that differ between any two runs."""


def print_comparison(run_dirs: Sequence[Path], page: Path | None = None, console: Console | None = None) -> None:
    """Print what differs between the runs, and write it to an HTML page too if one is given.

    Raises `NoRunError` and what else `read_history` raises.
    """
    console = console or Console(record=page is not None)
    histories = [read_history(run_dir) for run_dir in run_dirs]
    names = [history.run.path.resolve().name for history in histories]
    rows = configuration_differences(histories)
    console.print(_table("configuration: keys that differ", "key", names, rows))
    console.print(_table("scores on held-out tasks, and speed", "", names, results(histories)))
    if page is not None:
        page.write_text(console.export_html(), encoding="utf-8")


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
            scores = [_score(history, label, env_id) for history in histories]
            if any(scores):
                rows.append([f"{env_id} {label}", *(_number_text(score) for score in scores), *_lead(scores)])
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


def _score(history: History, label: str, env_id: str) -> tuple[float, float] | None:
    """Mean reward and its standard error; None where it was not measured."""
    line = history.evaluation(label) or {}
    reward = line.get(f"reward/{env_id}")
    return None if reward is None else (reward, line.get(f"stderr/{env_id}") or 0.0)


def _number_text(score: tuple[float, float] | None) -> str:
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


def _table(title: str, first: str, names: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left")
    width = max((len(row) - 1 for row in rows), default=len(names))
    for column in (first, *names, *["difference"] * (width - len(names))):
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table
