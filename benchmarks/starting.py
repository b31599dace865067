"""How long do commands take to answer, and a run to sample?

    python -m benchmarks.starting --out benchmarks/results/starting.json     (about three minutes, two cores)

The quickstart's tiny hybrid, one engine and the learner on this machine. `run_s` is from the start of `rl train` to the
moment at which learner and engine are up and the first replies are asked for; the other times are parts of it.
"""

import datetime
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer
import yaml

from benchmarks.random_policies import untrained
from benchmarks.report import write_report

MOMENTS = {"until_folder_s": "started on", "until_ray_s": "Ray's files", "until_learner_s": "the learner holds"}
MOMENTS |= {"until_engine_s": "the engine serves", "run_s": "INFO rl.runs.display: training"}
"""What the run's log says then."""


def main(
    out: Annotated[Path, typer.Option(help="JSON file to write.")],
    repeats: Annotated[int, typer.Option(min=1, help="Repetitions, after one that is not counted.")] = 3,
    short: Annotated[bool, typer.Option(help="Everything once; only to see that it runs.")] = False,
) -> None:
    raw: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as scratch:
        experiment = written(Path(scratch))
        for number in range(1 if short else repeats + 1):
            wrong = ["rl", "train", str(experiment), "train.num_step=1"]
            raw.append(
                {
                    "envs_list_s": seconds(["envs", "list"], 0),
                    "explain_s": seconds(["rl", "explain"], 0),
                    "yaml_error_s": seconds(wrong, 2),
                    **run_times(experiment, Path(scratch) / f"run_{number}"),
                }
            )
    counted = raw if short else raw[1:]  # files are in memory from the first time on
    summary = {name: statistics.median(one[name] for one in counted) for name in raw[0]}
    write_report(out, summary, raw=raw)


def written(folder: Path) -> Path:
    policy = untrained(folder / "policy")
    tree = {
        "seed": 0,
        "policy": {"path": str(policy), "max_tokens": 128},
        "environments": {"math/Arithmetic-v0": {}},
        "train": {"num_steps": 1, "num_prompts": 2, "group_size": 2},
        "evaluation": {"num_tasks": 2},
        "rollout": {"max_reply_tokens": 16, "max_in_flight": 8, "kv_cache_gib": 0.1},
        "ray": {"address": "local"},
        "run_dir": str(folder / "run"),
    }
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def seconds(command: list[str], code: int) -> float:
    """Raises `RuntimeError` if the command ends with another exit code."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, check=False)
    if done.returncode != code:
        raise RuntimeError(f"{command} ended with exit code {done.returncode}:\n{done.stdout}{done.stderr}"[-3000:])
    return time.perf_counter() - started


def run_times(experiment: Path, run_dir: Path) -> dict[str, float]:
    """From the start of the process to each of `MOMENTS`, and to its end."""
    started = time.time()
    whole = seconds(["rl", "train", str(experiment), f"run_dir={json.dumps(str(run_dir))}"], 0)
    lines = (run_dir / "run.log").read_text().splitlines()
    times: dict[str, float] = {}
    for name, said in MOMENTS.items():
        line = next(line for line in lines if said in line)
        times[name] = datetime.datetime.fromisoformat(line[:23]).timestamp() - started
    return times | {"until_end_s": whole}


if __name__ == "__main__":
    typer.run(main)
