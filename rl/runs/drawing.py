"""How are curves, panels and shares drawn, so that all figures of a report look alike?"""

import io
import math
from collections.abc import Callable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rl.runs.history import History, points

COLOURS = ("#2b6cb0", "#c05621", "#2f855a", "#805ad5", "#b83280", "#4a5568", "#b7791f", "#0f8b8d")
GREY = "#718096"
WIDTH = 9.0  # inches
DOTS_PER_INCH = 130


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH)
    return buffer.getvalue()


def smoothed(values: Sequence[float]) -> list[float]:
    """Trailing mean over a twentieth of the values, at least one."""
    window = max(1, len(values) // 20)
    return [sum(part) / len(part) for end in range(1, len(values) + 1) for part in [values[max(0, end - window) : end]]]


def new_figure(num_rows: int, num_columns: int) -> tuple[Figure, list[Axes]]:
    """A figure and its panels, row by row."""
    figure = Figure(figsize=(WIDTH, 2.9 * num_rows), layout="constrained")
    return figure, list(figure.subplots(num_rows, num_columns, squeeze=False).flat)


def by_environment(history: History, name: str, draw: Callable[[Axes, str, str], None]) -> Figure | None:
    """A panel for each environment, which `draw` fills, given its id and a colour."""
    if not history.env_ids or not (history.steps or history.evaluations):
        return None
    num_columns = min(3, len(history.env_ids))
    figure, all_axes = new_figure(math.ceil(len(history.env_ids) / num_columns), num_columns)
    for number, (axes, env_id) in enumerate(zip(all_axes, history.env_ids, strict=False)):
        draw(axes, env_id, COLOURS[number % len(COLOURS)])
        axes.set_title(env_id, fontsize=9, loc="left")
        label_axes(axes, name if number % num_columns == 0 else "", legend=number == 0)
    for unused in all_axes[len(history.env_ids) :]:
        unused.remove()
    return figure


def panels(lines: Sequence[Mapping[str, float]], quantities: Mapping[str, str]) -> Figure | None:
    """A panel for each title whose metric the lines have."""
    present = {title: points(lines, name) for title, name in quantities.items()}
    present = {title: series for title, series in present.items() if series[0]}
    if not present:
        return None
    num_columns = min(2, len(present))
    figure, all_axes = new_figure(math.ceil(len(present) / num_columns), num_columns)
    for axes, (title, (steps, values)) in zip(all_axes, present.items(), strict=False):
        curve(axes, steps, values, COLOURS[0], "")
        label_axes(axes, title, legend=False)
    for unused in all_axes[len(present) :]:
        unused.remove()
    return figure


def curve(axes: Axes, steps: Sequence[int], values: Sequence[float], colour: str, label: str) -> None:
    """Raw values faint, their trailing mean on top; a point where there is only one."""
    if not steps:
        return
    axes.plot(steps, values, color=colour, linewidth=0.8, alpha=0.3)
    marker = "o" if len(steps) == 1 else ""
    axes.plot(steps, smoothed(values), color=colour, linewidth=1.6, marker=marker, label=label)


def label_axes(axes: Axes, name: str, *, legend: bool) -> None:
    """For a quantity over steps."""
    style(axes, name)
    axes.set_xlabel("step", fontsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if legend and axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, fontsize=8)


def legend_beside(axes: Axes) -> None:
    """A legend next to the axes, in the order of the stack, for filled areas that leave no room inside."""
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0), reverse=True)


def style(axes: Axes, name: str) -> None:
    """As all panels look; the name is that of the vertical axis."""
    axes.set_ylabel(name, fontsize=8)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e2e8f0", linewidth=0.7)
    axes.set_axisbelow(True)


def stack(axes: Axes, history: History, names: Sequence[str]) -> None:
    """Shares of each step, which add up to 1."""
    steps = [line["step"] for line in history.steps]
    shares = [[line.get(name) or 0.0 for line in history.steps] for name in names]
    labels = [name.partition("/")[2] for name in names]
    axes.stackplot(steps, shares, labels=labels, colors=COLOURS, alpha=0.75, linewidth=0)
    axes.set_ylim(0, 1)


def names_with(history: History, prefix: str) -> list[str]:
    """Metrics of the steps with this prefix, sorted."""
    return sorted({name for line in history.steps for name in line if name.startswith(prefix)})
