"""What does the machinery of an episode cost, here and in other projects' packages?

    python -m benchmarks.episodes --out benchmarks/results/episodes.json       (two minutes; `make adapters` first)

The same episode of two turns and one tool call, without a model: 512 of them, 64 at once, one side after another and
that three times over, each turn in a process of its own. The figures are CPU milliseconds of the process an episode.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.episode_sides import SIDES

NUM_TURNS = 3
FOREIGN = Path(__file__).parents[1] / ".venv" / "foreign"


def measured(side: str) -> list[float]:
    """Every repetition of one turn of this side."""
    settings = {**os.environ, "PYTHONPATH": os.pathsep.join([str(FOREIGN.parents[1]), str(FOREIGN)])}
    command = [sys.executable, "-m", "benchmarks.episode_sides", side]
    done = subprocess.run(command, env=settings, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{side}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main(out: Annotated[Path, typer.Option(help="JSON file to write.")]) -> None:
    raw: dict[str, list[list[float]]] = {side: [] for side in SIDES}
    for turn in range(NUM_TURNS):
        for side in SIDES:
            raw[side].append(measured(side))
            typer.echo(f"turn {turn}, {side}: {statistics.median(raw[side][-1]):.3f} ms")
    medians = {side: statistics.median(value for turn in turns for value in turn) for side, turns in raw.items()}
    summary = {
        **{f"{side}_ms": round(value, 3) for side, value in medians.items()},
        "polygym_by_trl": round(medians["polygym"] / medians["trl"], 3),
        "polygym_environment_by_skyrl": round(medians["polygym_environment"] / medians["skyrl"], 3),
    }
    machine = {"cpus": os.cpu_count(), "machine": platform.machine()}
    out.write_text(json.dumps({"summary": summary, "machine": machine, "raw": raw}, indent=2) + "\n")
    typer.echo(json.dumps(summary, indent=2))


if __name__ == "__main__":
    typer.run(main)
