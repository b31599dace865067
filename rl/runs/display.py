"""How is a run displayed on the terminal? As a live panel; in logs and Ray jobs as one line per step."""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from rl.config.experiment import ExperimentConfig
from rl.data_types import Outcome
from rl.runs.progress import drawn, print_line

BLOCKS = "▁▂▃▄▅▆▇█"
NUM_MEAN = 20  # steps of the moving mean
SPARK_WIDTH = 24
LEGEND = (
    "mismatch is 1 if learner and engine compute the same policy; docs/metrics.md explains it and every other number"
)

logger = logging.getLogger(__name__)


class Display:
    """A context manager; nothing is shown outside of the block. All calls come from one thread."""

    def __init__(self, config: ExperimentConfig, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False)
        self._config = config
        self._stage = "starting"
        self._phase = ""
        self._metrics: Mapping[str, float] = {}
        self._rewards: dict[str, list[float]] = defaultdict(list)
        self._progress = Progress(
            TextColumn("step"),
            BarColumn(bar_width=32),
            MofNCompleteColumn(),
            TextColumn("elapsed"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._task = self._progress.add_task("train", total=config.train.num_steps)
        self._live = Live(get_renderable=self._render, console=self._console, refresh_per_second=4)
        self._drawn = drawn(self._live)

    def __enter__(self) -> "Display":
        self._drawn.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._drawn.__exit__(kind, error, traceback)

    def stage(self, name: str) -> None:
        """Show what the run is doing: starting, training, ..."""
        self._stage, self._phase = name, ""
        self._say(name, in_panel=True)

    def phase(self, name: str) -> None:
        """Show the current part of a step, on a terminal only."""
        self._phase = name

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show the metrics of a step, by the names of `rl.runs.tracking`."""
        if not self._metrics:
            self.message(LEGEND)
            # A resumed run begins at a later step; the steps before it must not enter the estimate of the time left.
            self._progress.reset(self._task, completed=step - 1)
        self._metrics = metrics
        for env_id in self._config.environments:
            if (reward := metrics.get(f"reward/{env_id}")) is not None:
                self._rewards[env_id].append(reward)
        self._progress.update(self._task, completed=step)
        self._say(step_line(step, self._config, metrics), in_panel=True)

    def evaluation(self, label: str, metrics: Mapping[str, float]) -> None:
        """Show the metrics of an evaluation, by the names of `rl.runs.evaluation`."""
        rewards = [
            f"{env_id} {metrics[f'reward/{env_id}']:.3f}"
            for env_id in self._config.environments
            if f"reward/{env_id}" in metrics
        ]
        self.message(f"evaluation {label}: reward " + ("  ".join(rewards) or "unknown: no rollout counted"))

    def message(self, text: str) -> None:
        """Print a line that stays above the panel."""
        self._say(text)

    def _say(self, text: str, *, in_panel: bool = False) -> None:
        """Log and print a line, unless the panel shows it."""
        logger.info("%s", text)
        if not (in_panel and self._live.is_started):
            print_line(self._console, text)

    def _render(self) -> Panel:
        status = self._stage + (f": {self._phase}" if self._phase else "")
        rows = [self._progress, _rate_line(self._metrics), self._reward_table(), _outcome_line(self._metrics)]
        return Panel(Group(*rows), title=Text(status), subtitle=Text(str(self._config.run_dir)), title_align="left")

    def _reward_table(self) -> Table:
        table = Table(box=None, pad_edge=False)
        for column in ("reward", "last", f"mean of {NUM_MEAN}", "", "reply tokens"):
            table.add_column(column, justify="left" if column in ("reward", "") else "right")
        for env_id in self._config.environments:
            rewards = self._rewards[env_id]
            last, mean = ("-", "-") if not rewards else (f"{rewards[-1]:.3f}", f"{moving_mean(rewards):.3f}")
            tokens = self._metrics.get(f"reply_tokens/{env_id}")
            length = "-" if tokens is None else f"{tokens:.0f}"
            table.add_row(env_id, last, mean, sparkline(rewards, SPARK_WIDTH), length)
        return table


def step_line(step: int, config: ExperimentConfig, metrics: Mapping[str, float]) -> str:
    """One step in one line of a log."""
    rewards = [
        f"{env_id} {metrics[f'reward/{env_id}']:.3f}" for env_id in config.environments if f"reward/{env_id}" in metrics
    ]
    outcomes = _outcomes(metrics)
    reward = f"{metrics['reward']:.3f} ({', '.join(rewards)})" if "reward" in metrics else "unknown: no rollout counted"
    parts = (
        f"step {step}/{config.train.num_steps}",
        f"reward {reward}",
        _rates(metrics),
        f"outcomes {outcomes}",
        f"{metrics.get('seconds', 0.0):.1f} s",
    )
    return "  ".join(filter(None, parts))


def moving_mean(values: Sequence[float], num: int = NUM_MEAN) -> float:
    """Mean of the last `num` values."""
    last = values[-num:]
    return sum(last) / len(last)


def sparkline(values: Sequence[float], width: int) -> str:
    """The last values as blocks, lowest to highest of those shown; a flat line where they are equal."""
    shown = list(values[-width:])
    if not shown:
        return ""
    low, high = min(shown), max(shown)
    if high == low:
        return BLOCKS[0] * len(shown)
    return "".join(BLOCKS[round((value - low) / (high - low) * (len(BLOCKS) - 1))] for value in shown)


def _rates(metrics: Mapping[str, float]) -> str:
    parts = [
        f"{metrics[name]:,.0f} {text}"
        for name, text in (("tokens_per_s/sampled", "sampled tok/s"), ("tokens_per_s/trained", "trained tok/s"))
        if name in metrics
    ]
    if "update/mismatch" in metrics:
        parts.append(f"mismatch {metrics['update/mismatch']:.4f}")
    return "  ".join(parts)


def _rate_line(metrics: Mapping[str, float]) -> Text:
    phases = [f"{name[6:]} {value:.0%}" for name, value in metrics.items() if name.startswith("share/")]
    return Text("  ".join(filter(None, [_rates(metrics), " ".join(phases)])), style="dim")


def _outcomes(metrics: Mapping[str, float]) -> str:
    counts = {outcome: int(metrics.get(f"outcome/{outcome}", 0)) for outcome in Outcome}
    return " ".join(f"{outcome} {count}" for outcome, count in counts.items() if count) or "none"


def _outcome_line(metrics: Mapping[str, float]) -> Text:
    if not metrics:
        return Text("")
    masked = metrics.get("masked_rows", 0.0)
    style = "yellow" if masked else "dim"
    return Text(f"outcomes {_outcomes(metrics)}  degenerate groups {metrics.get('degenerate_groups', 0):.0f}", style)
