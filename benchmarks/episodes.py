"""What does the machinery of an episode cost, here and in other projects' packages?

    python -m benchmarks.episodes --out benchmarks/results/episodes.json       (two minutes; `make adapters` first)

The same episode of two turns and one tool call, without a model: 512 of them, 64 at once, one side after another and
that three times over, each turn in a process of its own. The figures are CPU milliseconds of the process an episode.
A side whose package is not installed is left out, and the report says so.
"""

import json
import os
import statistics
import subprocess
import sys
from importlib.machinery import PathFinder
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.report import write_report

NUM_TURNS = 3
ROOT = Path(__file__).parents[1]
SIDES = ("polygym", "trl", "polygym_environment", "skyrl")
"""Modules of `benchmarks.episode_sides`."""


def main(
    out: Annotated[Path, typer.Option(help="JSON file to write.")],
    foreign: Annotated[Path, typer.Option(help="Where skyrl-gym is installed.")] = ROOT / ".venv" / "foreign",
    short: Annotated[bool, typer.Option(help="Few episodes, one turn; only to see that it runs.")] = False,
) -> None:
    left_out = missing_sides(foreign)
    for side, reason in left_out.items():
        typer.echo(f"without the side {side}: {reason}")
    sides = [side for side in SIDES if side not in left_out]
    raw: dict[str, list[list[float]]] = {side: [] for side in sides}
    for turn in range(1 if short else NUM_TURNS):
        for side in sides:
            raw[side].append(measured(side, foreign, short))
            typer.echo(f"turn {turn}, {side}: {statistics.median(raw[side][-1]):.3f} ms")
    write_report(out, summary(raw), left_out=left_out, versions={"trl": version("trl")}, raw=raw)


def missing_sides(foreign: Path) -> dict[str, str]:
    """Sides that cannot run here, and why."""
    if PathFinder.find_spec("skyrl_gym", [str(foreign)]) is not None:
        return {}
    return {"skyrl": f"skyrl-gym is not installed in {foreign}; `make adapters` installs it"}


def measured(side: str, foreign: Path, short: bool) -> list[float]:
    """Every repetition of one turn of this side."""
    # Ours come first: a package there is called `benchmarks` too.
    settings = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(foreign)])}
    command = [sys.executable, "-m", f"benchmarks.episode_sides.{side}", *(["--short"] if short else [])]
    done = subprocess.run(command, env=settings, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{side}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def summary(raw: dict[str, list[list[float]]]) -> dict[str, float]:
    """The median of each side that ran, and polygym's by that of the side beside it."""
    medians = {side: statistics.median(value for turn in turns for value in turn) for side, turns in raw.items()}
    figures = {f"{side}_ms": round(value, 3) for side, value in medians.items()}
    for ours, theirs in (("polygym", "trl"), ("polygym_environment", "skyrl")):
        if theirs in medians:
            figures[f"{ours}_by_{theirs}"] = round(medians[ours] / medians[theirs], 3)
    return figures


if __name__ == "__main__":
    typer.run(main)
