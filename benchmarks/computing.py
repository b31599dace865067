"""What does a training step cost with an environment that computes 0.3 s of Python an episode?

    python -m benchmarks.computing --out benchmarks/results/computing.json     (about six minutes, two cores)

The same short run of a tiny policy with one engine, three times: with the environment on threads, in processes, and on
threads with an environment that computes nothing. The last one tells what the cores allow: its seconds a step and the
environment's CPU seconds, spread over all cores without a gap (`ideal_s`). Figures are medians over the steps but the
first.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.node_figures import lines
from benchmarks.nodes import ROOT
from benchmarks.random_policies import untrained
from benchmarks.report import write_report

ENVIRONMENT = "benchmarks.computing_env:computes"


@dataclass(frozen=True, slots=True)
class Form:
    num_steps: int
    num_prompts: int
    group_size: int
    cpu_s: float
    """CPU seconds of the environment an episode."""

    @property
    def env_s(self) -> float:
        """CPU seconds of the environment a step."""
        return self.num_prompts * self.group_size * self.cpu_s


FULL = Form(num_steps=5, num_prompts=8, group_size=8, cpu_s=0.3)
SHORT = Form(num_steps=2, num_prompts=1, group_size=2, cpu_s=0.01)
WAYS: Mapping[str, tuple[bool, bool]] = {"nothing": (False, False), "threads": (True, False), "processes": (True, True)}
"""Whether the environment computes, and whether it has processes."""


def main(
    out: Annotated[Path, typer.Option(help="JSON file to write.")],
    short: Annotated[bool, typer.Option(help="Two short steps; only to see that it runs.")] = False,
) -> None:
    form = SHORT if short else FULL
    raw: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        policy = untrained(Path(folder) / "policy")
        for way in WAYS:
            raw[way] = step_seconds(Path(folder) / way, policy, way, form)
            typer.echo(f"{way}: {raw[way]}")
    write_report(out, summarised(raw, form, len(os.sched_getaffinity(0))), raw=raw)


def summarised(raw: Mapping[str, Sequence[float]], form: Form, num_cores: int) -> dict[str, float]:
    seconds = {way: statistics.median(steps[1:]) for way, steps in raw.items()}
    ideal_s = (seconds["nothing"] + form.env_s) / num_cores
    figures = {f"{way}_s": value for way, value in seconds.items()}
    ratios = {f"{way}_by_ideal": seconds[way] / ideal_s for way in ("threads", "processes")}
    return {**figures, "ideal_s": ideal_s, **ratios}


def step_seconds(run_dir: Path, policy: Path, way: str, form: Form) -> list[float]:
    """Seconds of every step of a run."""
    computes, process = WAYS[way]
    experiment = {
        "run_dir": str(run_dir),
        "seed": 0,
        "policy": {"path": str(policy)},
        "environments": {ENVIRONMENT: {"process": process, "options": {"cpu_s": form.cpu_s if computes else 0.0}}},
        "train": {"num_steps": form.num_steps, "num_prompts": form.num_prompts, "group_size": form.group_size},
        "rollout": {"cpus_per_worker": 0.5, "max_reply_tokens": 64, "kv_cache_gib": 0.1},
        "evaluation": {"num_tasks": 1},
        "ray": {"address": "local"},
    }
    yaml = run_dir.with_suffix(".yaml")
    yaml.write_text(json.dumps(experiment))
    command = [sys.executable, "-m", "rl", "train", str(yaml)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{way}: {done.stdout[-2000:]}{done.stderr[-4000:]}")
    return [line["seconds"] for line in lines(run_dir, "train")]


if __name__ == "__main__":
    typer.run(main)
