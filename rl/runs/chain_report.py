"""What did the stages of a chain do, and what did each change? One page over all of them, and the same as tables."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from matplotlib.figure import Figure
from rich.console import Console

from envs.json_lines import read_lines
from rl.runs.chain_folder import ChainFolder, ListedStage
from rl.runs.compare import number_text, print_rows, score
from rl.runs.drawing import COLOURS, new_figure, png, style
from rl.runs.files import storing, write_atomically
from rl.runs.folder import RunFolder
from rl.runs.history import History, NoRunError, points, read_history
from rl.runs.html import image, page, section, table
from rl.runs.report import amounts, write_report

TITLE = "Held-out reward by environment across the stages; bars are standard errors, dots go on to the next evaluation"
HEAD = ("stage", "command", "starts from", "state", "steps", "rollouts", "tokens", "seconds")
REWARD_HEAD = ("environment", "stage", "before", "after")
NOTE = (
    "tokens: sampled ones of rl train, trained ones of others; seconds: all attempts of the stage, with starts,"
    " evaluations and the export"
)


@dataclass(frozen=True, slots=True)
class StageHistory:
    """What is known of a stage."""

    stage: ListedStage
    folder: Path
    state: str
    seconds: float
    history: History | None
    """None if the command writes no run folder, or has not begun."""

    @property
    def counts(self) -> list[str]:
        """Steps, rollouts and tokens, as far as the stage has them."""
        if self.history is None or not self.history.steps:
            lines = list(read_lines(self.folder / self.stage.result / "metrics.jsonl"))
            tokens = sum(line.get("tokens") or 0 for line in lines)
            return [f"{lines[-1]['step']:,}" if lines else "-", "-", f"{tokens:,}" if tokens else "-"]
        rollouts, tokens = amounts(self.history)
        return [f"{self.history.steps[-1]['step']:,}", f"{rollouts:,.0f}", f"{tokens:,.0f}"]


def write_chain_report(path: Path, console: Console | None = None) -> Path:
    """Print the tables of the chain in this folder, and write `report.html` and `figures/heldout_reward.png`, also of a
    chain that has not ended. Returns the page's path.

    Raises `NoRunError` if the folder holds no chain, what `read_history` raises, and `StorageError`.
    """
    folder = ChainFolder(path)
    if not folder.holds_chain:
        raise NoRunError(f"{path} holds no chain (no chain.json); give the run_dir of a chain")
    stages = [stage_history(folder, stage) for stage in folder.stages()]
    rows, rewards = stage_rows(stages), reward_rows(stages)
    body = [section("Stages", table(HEAD, rows) + f"<p>{escape(NOTE)}</p>" + _links(stages))]
    body.append(section("Held-out tasks, before and after", table(REWARD_HEAD, rewards) if rewards else ""))
    if (figure := reward_figure(stages)) is not None:
        drawn = png(figure)
        file = path / "figures" / "heldout_reward.png"
        with storing(file):
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(drawn)
        body.append(section(TITLE, image(TITLE, drawn)))
    write_atomically(folder.report_file, page(path.resolve().name, "\n".join(body)))
    console = console or Console()
    print_rows(console, "stages", HEAD[0], HEAD[1:], rows)
    title = "held-out tasks (never trained): reward ± standard error"
    print_rows(console, title, REWARD_HEAD[0], REWARD_HEAD[1:], rewards)
    return folder.report_file


def stage_rows(stages: Sequence[StageHistory]) -> list[list[str]]:
    """A row for each stage, with the columns of `HEAD`."""
    return [
        [one.stage.name, one.stage.command, one.stage.source or "-", one.state, *one.counts, f"{one.seconds:,.0f}"]
        for one in stages
    ]


def reward_rows(stages: Sequence[StageHistory]) -> list[list[str]]:
    """A row for each environment and stage that measured it: the reward before and after."""
    rows = []
    for env_id in _env_ids(stages):
        for one in stages:
            scores = [score(one.history, label, env_id) if one.history else None for label in ("before", "after")]
            if any(scores):
                rows.append([env_id, one.stage.name, *map(number_text, scores)])
    return rows


def reward_figure(stages: Sequence[StageHistory]) -> Figure | None:
    """A panel for each environment, whose rewards differ in scale, with a column for each stage that evaluated."""
    played, env_ids = [one for one in stages if one.history is not None and one.history.evaluations], _env_ids(stages)
    if not played:
        return None
    num_columns = min(3, len(env_ids))
    figure, panels = new_figure(math.ceil(len(env_ids) / num_columns), num_columns)
    for number, (axes, env_id) in enumerate(zip(panels, env_ids, strict=False)):
        ends: dict[str, tuple[float, float]] = {}
        colour = COLOURS[number % len(COLOURS)]
        for place, one in enumerate(played):
            xs, values, errors = _points(one, place, env_id)
            if not xs:
                continue
            if (end := _end_before(one, stages, ends)) is not None:  # what stages between them did to it
                axes.plot([end[0], xs[0]], [end[1], values[0]], color=colour, linewidth=1, linestyle=":")
            axes.errorbar(xs, values, errors, color=colour, marker="o", markersize=4, capsize=2)
            ends[one.stage.name] = (xs[-1], values[-1])
        for edge in range(1, len(played)):
            axes.axvline(edge, color="#cbd5e0", linewidth=0.8)
        axes.set_xlim(0, len(played))
        names = [one.stage.name for one in played]
        axes.set_xticks([place + 0.5 for place in range(len(played))], names, rotation=20)
        axes.set_title(env_id, fontsize=9, loc="left")
        style(axes, "held-out reward" if number % num_columns == 0 else "")
        axes.tick_params(axis="x", length=0)
    for unused in panels[len(env_ids) :]:
        unused.remove()
    return figure


def _end_before(
    one: StageHistory, stages: Sequence[StageHistory], ends: Mapping[str, tuple[float, float]]
) -> tuple[float, float] | None:
    """Where the line ended in the last stage, of those that the policy went through, that has one."""
    sources = {each.stage.name: each.stage.source for each in stages}
    name = one.stage.source
    while name and name not in ends:
        name = sources.get(name, "")
    return ends.get(name)


def _points(one: StageHistory, place: int, env_id: str) -> tuple[list[float], list[float], list[float]]:
    """Where the environment's evaluations are in the column of a stage, their values and standard errors."""
    assert one.history is not None
    name = f"reward/{env_id}"
    lines = [line for line in one.history.evaluations if line.get(name) is not None]
    steps, values = points(lines, name)
    last = max([line["step"] for line in (*one.history.evaluations, *one.history.steps)], default=0)
    xs = [place + 0.1 + 0.8 * (step / last if last else 0.0) for step in steps]
    return xs, values, [line.get(f"stderr/{env_id}") or 0.0 for line in lines]


def _env_ids(stages: Sequence[StageHistory]) -> list[str]:
    return sorted({env_id for one in stages if one.history is not None for env_id in one.history.env_ids})


def stage_history(folder: ChainFolder, stage: ListedStage) -> StageHistory:
    """Read the folder of a stage; a run without a report gets one."""
    place = folder.path / stage.name
    history = read_history(place) if RunFolder(place).holds_run else None
    if history is not None and not RunFolder(place).report_file.is_file():
        write_report(place)  # the supervised stage alone writes none
    state = "finished" if folder.finished_file(stage.name).is_file() else "begun" if place.is_dir() else "not begun"
    return StageHistory(stage, place, state, folder.seconds(stage.name), history)


def _links(stages: Sequence[StageHistory]) -> str:
    """To the reports of the runs."""
    found = [one.stage.name for one in stages if RunFolder(one.folder).report_file.is_file()]
    links = ", ".join(f'<a href="{escape(name)}/report.html">{escape(name)}</a>' for name in found)
    return f"<p>Reports of the runs: {links}</p>" if links else ""
