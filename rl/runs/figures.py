"""Which figures does a run's report have? Each function draws one, or returns None if the run has no data for it."""

import math
from collections.abc import Callable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rl.data_types import Outcome
from rl.runs.history import History, points

COLOURS = ("#2b6cb0", "#c05621", "#2f855a", "#805ad5", "#b83280", "#4a5568", "#b7791f", "#0f8b8d")
GREY = "#718096"
WIDTH = 9.0  # inches
OUTCOME_COLOURS = dict(
    zip(
        Outcome,
        ("#68a37d", "#d9b44a", "#d98e4a", "#c96a5b", "#4a5568", "#718096", "#a0aec0", "#cbd5e0"),
        strict=True,
    )
)


MAX_LEVEL_LABELS = 6
"""Names of environments that fit side by side."""


def smoothed(values: Sequence[float]) -> list[float]:
    """Trailing mean over a twentieth of the values, at least one."""
    window = max(1, len(values) // 20)
    return [sum(part) / len(part) for end in range(1, len(values) + 1) for part in [values[max(0, end - window) : end]]]


def reward_figure(history: History) -> Figure | None:
    """Reward by environment over steps, with held-out evaluations as points."""

    def draw(axes: Axes, env_id: str, colour: str) -> None:
        _curve(axes, *history.series(f"reward/{env_id}"), colour, "training")
        steps, values = points(history.evaluations, f"reward/{env_id}")
        errors = [line.get(f"stderr/{env_id}") or 0.0 for line in history.evaluations if f"reward/{env_id}" in line]
        if steps and len(errors) == len(values):
            axes.errorbar(steps, values, errors, fmt="o", color="black", markersize=4, capsize=3, label="held out")

    return _by_environment(history, "reward", draw)


def length_figure(history: History) -> Figure | None:
    """Tokens of a rollout's replies by environment over steps: mean, and the longest of each step."""

    def draw(axes: Axes, env_id: str, colour: str) -> None:
        steps, values = history.series(f"reply_tokens_max/{env_id}")
        if steps:
            axes.plot(steps, values, color=GREY, linewidth=0.8, alpha=0.6, label="longest")
        _curve(axes, *history.series(f"reply_tokens/{env_id}"), colour, "mean")
        axes.set_ylim(bottom=0)

    return _by_environment(history, "reply tokens", draw)


def health_figure(history: History) -> Figure | None:
    """Mismatch between learner and engine, entropy, gradient norm and staleness."""
    panels = {
        "mismatch (mean exp|Δ logp|)": "update/mismatch",
        "entropy (nats a token)": "update/entropy",
        "gradient norm": "update/grad_norm",
        "staleness (updates)": "staleness",
    }
    return _panels(history.steps, panels)


def sft_figure(history: History) -> Figure | None:
    """Loss and throughput of the supervised stage, and the loss of its held-out rows."""
    figure = _panels(history.sft, {"supervised loss (nats a token)": "loss", "supervised tokens/s": "tokens_per_s"})
    steps, values = points(history.sft, "heldout_loss")
    if figure and steps:
        figure.axes[0].plot(steps, values, "o-", color="black", markersize=4, linewidth=1, label="held out")
        _label(figure.axes[0], "supervised loss (nats a token)", legend=True)
    return figure


def throughput_figure(history: History) -> Figure | None:
    """Tokens a second, how a step's time is shared among its phases, and what works meanwhile."""
    phases, working = (_names(history, prefix) for prefix in ("share/", "working/"))
    if not phases:
        return None
    figure, (left, *others) = _figure(1, 3 if working else 2)
    for colour, (name, label) in zip(COLOURS, (("sampled", "sampled"), ("trained", "trained")), strict=False):
        _curve(left, *history.series(f"tokens_per_s/{name}"), colour, label)
    left.set_ylim(bottom=0)
    _label(left, "tokens/s", legend=True)
    titles = ("share of a step's time", "what works meanwhile")
    for axes, names, title in zip(others, (phases, working), titles, strict=False):
        _stack(axes, history, names)
        _label(axes, title, legend=False)
        _legend_beside(axes)
    return figure


def _names(history: History, prefix: str) -> list[str]:
    return sorted({name for line in history.steps for name in line if name.startswith(prefix)})


def _stack(axes: Axes, history: History, names: Sequence[str]) -> None:
    """Shares of each step, which add up to 1."""
    steps = [line["step"] for line in history.steps]
    shares = [[line.get(name) or 0.0 for line in history.steps] for name in names]
    labels = [name.partition("/")[2] for name in names]
    axes.stackplot(steps, shares, labels=labels, colors=COLOURS, alpha=0.75, linewidth=0)
    axes.set_ylim(0, 1)


def outcome_figure(history: History) -> Figure | None:
    """How the rollouts of each step ended."""
    counts = {outcome: [line.get(f"outcome/{outcome}") or 0 for line in history.steps] for outcome in Outcome}
    present = {outcome: values for outcome, values in counts.items() if any(values)}
    if not present:
        return None
    figure, (axes,) = _figure(1, 1)
    steps = [line["step"] for line in history.steps]
    colours = [OUTCOME_COLOURS[outcome] for outcome in present]
    axes.stackplot(steps, list(present.values()), labels=list(present), colors=colours, linewidth=0)
    _label(axes, "rollouts a step", legend=False)
    _legend_beside(axes)
    return figure


def before_after_figure(history: History) -> Figure | None:
    """Held-out reward by environment before and after training, with standard errors."""
    found = [(label, history.evaluation(label)) for label in ("before", "after")]
    env_ids = [env_id for env_id in history.env_ids if any(line and f"reward/{env_id}" in line for _, line in found)]
    if not env_ids:
        return None
    figure, (axes,) = _figure(1, 1)
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
    _style(axes, "held-out reward")
    axes.legend(frameon=False, fontsize=8)
    return figure


def budget_figure(history: History) -> Figure | None:
    """Held-out accuracy against thinking budget by environment, with standard errors and mean reply tokens."""
    if not history.budgets:
        return None
    env_ids = sorted(
        {name.removeprefix("num/") for line in history.budgets.values() for name in line if "num/" in name}
    )
    figure, (left, right) = _figure(1, 2)
    for number, env_id in enumerate(env_ids):
        for axes, quantity in ((left, "accuracy"), (right, "reply_tokens")):
            values = [line.get(f"{quantity}/{env_id}", math.nan) for line in history.budgets.values()]
            nums = [line.get(f"num/{env_id}", 0) for line in history.budgets.values()]
            errors = [
                _share_error(value, num) if axes is left else 0.0 for value, num in zip(values, nums, strict=True)
            ]
            colour = COLOURS[number % len(COLOURS)]
            axes.errorbar(range(len(values)), values, errors, color=colour, marker="o", capsize=3, label=env_id)
    for axes, name in ((left, "held-out accuracy"), (right, "tokens of the replies")):
        axes.set_xticks(range(len(history.budgets)), list(history.budgets))
        axes.set_ylim(bottom=0)
        _style(axes, name)
        axes.set_xlabel("thinking budget (tokens a reply)", fontsize=8)
    left.legend(frameon=False, fontsize=8)
    return figure


def _share_error(share: float, num: int) -> float:
    """Standard error of a share of `num`."""
    return math.sqrt(share * (1 - share) / num) if num else 0.0


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


def _figure(num_rows: int, num_columns: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(WIDTH, 2.9 * num_rows), layout="constrained")
    return figure, list(figure.subplots(num_rows, num_columns, squeeze=False).flat)


def _by_environment(history: History, name: str, draw: Callable[[Axes, str, str], None]) -> Figure | None:
    if not history.env_ids or not (history.steps or history.evaluations):
        return None
    num_columns = min(3, len(history.env_ids))
    figure, all_axes = _figure(math.ceil(len(history.env_ids) / num_columns), num_columns)
    for number, (axes, env_id) in enumerate(zip(all_axes, history.env_ids, strict=False)):
        draw(axes, env_id, COLOURS[number % len(COLOURS)])
        axes.set_title(env_id, fontsize=9, loc="left")
        _label(axes, name if number % num_columns == 0 else "", legend=number == 0)
    for unused in all_axes[len(history.env_ids) :]:
        unused.remove()
    return figure


def _panels(lines: Sequence[Mapping[str, float]], panels: Mapping[str, str]) -> Figure | None:
    present = {title: points(lines, name) for title, name in panels.items()}
    present = {title: series for title, series in present.items() if series[0]}
    if not present:
        return None
    num_columns = min(2, len(present))
    figure, all_axes = _figure(math.ceil(len(present) / num_columns), num_columns)
    for axes, (title, (steps, values)) in zip(all_axes, present.items(), strict=False):
        _curve(axes, steps, values, COLOURS[0], "")
        _label(axes, title, legend=False)
    for unused in all_axes[len(present) :]:
        unused.remove()
    return figure


def _curve(axes: Axes, steps: Sequence[int], values: Sequence[float], colour: str, label: str) -> None:
    """Raw values faint, their trailing mean on top; a point where there is only one."""
    if not steps:
        return
    axes.plot(steps, values, color=colour, linewidth=0.8, alpha=0.3)
    marker = "o" if len(steps) == 1 else ""
    axes.plot(steps, smoothed(values), color=colour, linewidth=1.6, marker=marker, label=label)


def _label(axes: Axes, name: str, *, legend: bool) -> None:
    _style(axes, name)
    axes.set_xlabel("step", fontsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if legend and axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, fontsize=8)


def _legend_beside(axes: Axes) -> None:
    """A legend next to the axes, in the order of the stack, for filled areas that leave no room inside."""
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0), reverse=True)


def _style(axes: Axes, name: str) -> None:
    axes.set_ylabel(name, fontsize=8)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e2e8f0", linewidth=0.7)
    axes.set_axisbelow(True)
