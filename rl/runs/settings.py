"""Which setting is better, over several seeds? Runs with folders named alike but for their seed have one setting."""

import math
import re
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev

import yaml
from matplotlib.figure import Figure

from rl.runs.drawing import COLOURS, label_axes, new_figure, smoothed, style
from rl.runs.history import History

TITLE = "Seeds of a setting together: reward in training (mean, and its range over seeds) and held out (a point a seed)"
MEAN = "mean"
"""In place of an environment: the mean over all of them."""


def settings_of(histories: Sequence[History]) -> dict[str, list[History]]:
    """The runs by setting, in their order: `bound_1_0` and `bound_1_1` with the seeds 0 and 1 are the setting
    `bound_1`, and so are `bound_1/seed_0` and `bound_1/seed_1`.

    Runs of one name and one seed, in different folders, are of different settings. Empty if no setting has two seeds.
    """
    settings: dict[str, dict[int, History]] = {}
    for history in histories:
        path, seed = history.run.path.resolve(), _seed(history)
        name = re.sub(rf"(^|[_-])(seed[_-]?)?{seed}$", "", path.name) or path.parent.name
        if seed in settings.get(name, {}):
            name = f"{path.parent.name}/{name}"
        settings.setdefault(name, {})[seed] = history
    if all(len(runs) == 1 for runs in settings.values()):
        return {}
    return {name: list(runs.values()) for name, runs in settings.items()}


def _seed(history: History) -> int:
    return (yaml.safe_load(history.config_text) or {}).get("seed", 0)


def setting_rows(settings: Mapping[str, Sequence[History]]) -> list[list[str]]:
    """Rows of held-out rewards: of each setting the mean over its seeds, the standard error of that mean, and their
    number.

    The last row is each setting's lead over the first one, from the differences between runs of the same seed.
    """
    env_ids = sorted({env_id for runs in settings.values() for run in runs for env_id in run.env_ids})
    rows = []
    for env_id in (*env_ids, MEAN):
        for label in ("before", "after"):
            scores = [_scores(runs, label, env_id) for runs in settings.values()]
            if any(scores):
                rows.append([f"{env_id} {label}", *(_mean_text(list(own.values()), "") for own in scores)])
    base, *others = (_scores(runs, "after", MEAN) for runs in settings.values())
    leads = [[score - base[seed] for seed, score in own.items() if seed in base] for own in others]
    if any(leads):
        rows.append([f"{MEAN} after, less {next(iter(settings))}", "", *(_mean_text(lead, "+") for lead in leads)])
    return rows


def _scores(runs: Sequence[History], label: str, env_id: str) -> dict[int, float]:
    """Held-out rewards by seed."""
    lines = {_seed(run): run.evaluation(label) or {} for run in runs}
    return {seed: line[f"reward/{env_id}"] for seed, line in lines.items() if line.get(f"reward/{env_id}") is not None}


def _mean_text(values: Sequence[float], sign: str) -> str:
    if not values:
        return "-"
    error = f" ± {stdev(values) / math.sqrt(len(values)):.3f}" if len(values) > 1 else ""
    return f"{fmean(values):{sign}.3f}{error} ({len(values)})"


def settings_figure(settings: Mapping[str, Sequence[History]]) -> Figure:
    """Reward in training over steps, and after it on held-out tasks."""
    figure, (left, right) = new_figure(1, 2)
    for number, (name, runs) in enumerate(settings.items()):
        colour = COLOURS[number % len(COLOURS)]
        rewards = [dict(zip(*run.series("reward"), strict=True)) for run in runs]
        steps = sorted(set.intersection(*(set(one) for one in rewards)))
        if steps:
            curves = [smoothed([one[step] for step in steps]) for one in rewards]
            at_step = list(zip(*curves, strict=True))
            left.fill_between(steps, list(map(min, at_step)), list(map(max, at_step)), color=colour, alpha=0.15)
            left.plot(steps, list(map(fmean, at_step)), color=colour, linewidth=1.6, label=name)
        scores = list(_scores(runs, "after", MEAN).values())
        right.plot([number] * len(scores), scores, "o", color=colour, markersize=4)
        if scores:
            right.hlines(fmean(scores), number - 0.3, number + 0.3, color=colour, linewidth=2)
    label_axes(left, "reward", legend=True)
    right.set_xticks(range(len(settings)), list(settings), fontsize=8)
    right.set_xlim(-0.6, len(settings) - 0.4)
    style(right, "held-out reward after")
    return figure
