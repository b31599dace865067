"""Which figures does a run's report have? Each function draws one, or returns None if the run has no data for it."""

import math
from collections.abc import Callable, Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rl.data_types import Outcome
from rl.runs.drawing import (
    COLOURS,
    GREY,
    by_environment,
    curve,
    label_axes,
    legend_beside,
    names_with,
    new_figure,
    panels,
    stack,
    style,
)
from rl.runs.history import History, points

OUTCOME_COLOURS = dict(
    zip(
        Outcome,
        ("#68a37d", "#d9b44a", "#d98e4a", "#c96a5b", "#4a5568", "#718096", "#a0aec0", "#cbd5e0"),
        strict=True,
    )
)
MAX_LEVEL_LABELS = 6
"""Names of environments that fit side by side."""


def reward_figure(history: History) -> Figure | None:
    """Reward by environment over steps, with held-out evaluations as points."""

    def draw(axes: Axes, env_id: str, colour: str) -> None:
        curve(axes, *history.series(f"reward/{env_id}"), colour, "training")
        steps, values = points(history.evaluations, f"reward/{env_id}")
        errors = [line.get(f"stderr/{env_id}") or 0.0 for line in history.evaluations if f"reward/{env_id}" in line]
        if steps and len(errors) == len(values):
            axes.errorbar(steps, values, errors, fmt="o", color="black", markersize=4, capsize=3, label="held out")

    return by_environment(history, "reward", draw)


def length_figure(history: History) -> Figure | None:
    """Tokens of a rollout's replies by environment over steps: mean, and the longest of each step."""

    def draw(axes: Axes, env_id: str, colour: str) -> None:
        steps, values = history.series(f"reply_tokens_max/{env_id}")
        if steps:
            axes.plot(steps, values, color=GREY, linewidth=0.8, alpha=0.6, label="longest")
        curve(axes, *history.series(f"reply_tokens/{env_id}"), colour, "mean")
        axes.set_ylim(bottom=0)

    return by_environment(history, "reply tokens", draw)


def health_figure(history: History) -> Figure | None:
    """Mismatch between learner and engine, entropy, gradient norm and staleness."""
    quantities = {
        "mismatch (mean exp|Δ logp|)": "update/mismatch",
        "entropy (nats a token)": "update/entropy",
        "gradient norm": "update/grad_norm",
        "staleness (updates)": "staleness",
    }
    return panels(history.steps, quantities)


def sft_figure(history: History) -> Figure | None:
    """Loss and throughput of the supervised stage, and the loss of its held-out rows."""
    figure = panels(history.sft, {"supervised loss (nats a token)": "loss", "supervised tokens/s": "tokens_per_s"})
    steps, values = points(history.sft, "heldout_loss")
    if figure and steps:
        figure.axes[0].plot(steps, values, "o-", color="black", markersize=4, linewidth=1, label="held out")
        label_axes(figure.axes[0], "supervised loss (nats a token)", legend=True)
    return figure


def throughput_figure(history: History) -> Figure | None:
    """Tokens a second, how a step's time is shared among its phases, and what works meanwhile."""
    phases, working = (names_with(history, prefix) for prefix in ("share/", "working/"))
    if not phases:
        return None
    figure, (left, *others) = new_figure(1, 3 if working else 2)
    for colour, (name, label) in zip(COLOURS, (("sampled", "sampled"), ("trained", "trained")), strict=False):
        curve(left, *history.series(f"tokens_per_s/{name}"), colour, label)
    left.set_ylim(bottom=0)
    label_axes(left, "tokens/s", legend=True)
    titles = ("share of a step's time", "what works meanwhile")
    for axes, names, title in zip(others, (phases, working), titles, strict=False):
        stack(axes, history, names)
        label_axes(axes, title, legend=False)
        legend_beside(axes)
    return figure


def outcome_figure(history: History) -> Figure | None:
    """How the rollouts of each step ended."""
    counts = {outcome: [line.get(f"outcome/{outcome}") or 0 for line in history.steps] for outcome in Outcome}
    present = {outcome: values for outcome, values in counts.items() if any(values)}
    if not present:
        return None
    figure, (axes,) = new_figure(1, 1)
    steps = [line["step"] for line in history.steps]
    colours = [OUTCOME_COLOURS[outcome] for outcome in present]
    axes.stackplot(steps, list(present.values()), labels=list(present), colors=colours, linewidth=0)
    label_axes(axes, "rollouts a step", legend=False)
    legend_beside(axes)
    return figure


def before_after_figure(history: History) -> Figure | None:
    """Held-out reward by environment before and after training, with standard errors."""
    found = [(label, history.evaluation(label)) for label in ("before", "after")]
    env_ids = [env_id for env_id in history.env_ids if any(line and f"reward/{env_id}" in line for _, line in found)]
    if not env_ids:
        return None
    figure, (axes,) = new_figure(1, 1)
    for place, (label, line) in enumerate(found):
        if line is None:
            continue
        rewards = [line.get(f"reward/{env_id}") or 0.0 for env_id in env_ids]
        errors = [line.get(f"stderr/{env_id}") or 0.0 for env_id in env_ids]
        positions = [number + (place - 0.5) * 0.36 for number in range(len(env_ids))]
        colour = (GREY, COLOURS[0])[place]
        axes.bar(positions, rewards, 0.34, yerr=errors, color=colour, capsize=3, label=label, error_kw={"linewidth": 1})
    slanted = {"rotation": 30, "ha": "right"} if len(env_ids) > MAX_LEVEL_LABELS else {}
    axes.set_xticks(range(len(env_ids)), env_ids, fontsize=8, **slanted)
    axes.set_xlim(-0.6, len(env_ids) - 0.4)
    style(axes, "held-out reward")
    axes.legend(frameon=False, fontsize=8)
    return figure


def budget_figure(history: History) -> Figure | None:
    """Held-out accuracy against thinking budget by environment, with standard errors and mean reply tokens."""
    if not history.budgets:
        return None
    env_ids = sorted(
        {name.removeprefix("num/") for line in history.budgets.values() for name in line if "num/" in name}
    )
    figure, (left, right) = new_figure(1, 2)
    for number, env_id in enumerate(env_ids):
        for axes, quantity in ((left, "accuracy"), (right, "reply_tokens")):
            values = [line.get(f"{quantity}/{env_id}", math.nan) for line in history.budgets.values()]
            errors = [accuracy_error(line, env_id) if axes is left else 0.0 for line in history.budgets.values()]
            colour = COLOURS[number % len(COLOURS)]
            axes.errorbar(range(len(values)), values, errors, color=colour, marker="o", capsize=3, label=env_id)
    for axes, name in ((left, "held-out accuracy"), (right, "tokens of the replies")):
        axes.set_xticks(range(len(history.budgets)), list(history.budgets))
        axes.set_ylim(bottom=0)
        style(axes, name)
        axes.set_xlabel("thinking budget (tokens a reply), or effort", fontsize=8)
    left.legend(frameon=False, fontsize=8)
    return figure


def accuracy_error(line: Mapping[str, float], env_id: str) -> float:
    """The standard error of an evaluation's accuracy, over tasks; NaN, which is no bar, in files of older versions."""
    return line.get(f"accuracy_stderr/{env_id}", math.nan)


FIGURES: Mapping[str, tuple[str, Callable[[History], Figure | None]]] = {
    "before_after": ("Held-out reward before and after training; bars are standard errors", before_after_figure),
    "reward": (
        "Reward in training (faint: each step; line: mean of a twentieth of the run) and held out",
        reward_figure,
    ),
    "budgets": ("Held-out accuracy against thinking budget; bars are standard errors", budget_figure),
    "reply_tokens": ("Length of replies, in tokens a rollout", length_figure),
    "outcomes": ("How rollouts ended", outcome_figure),
    "health": ("Agreement of learner and engine, entropy, gradient, staleness", health_figure),
    "throughput": ("Throughput and where the time went", throughput_figure),
    "sft": ("The supervised stage", sft_figure),
}
