"""Does the memory of any process grow with the number of steps?

    python -m benchmarks.long_run --out benchmarks/results/long_run.json     (15 minutes, two cores)

An asynchronous run of a tiny policy with the smallest steps, so that there are many of them. Every ten seconds the
anonymous memory (what a process allocates, without files and shared memory) is read of the driver, the learner, the
worker, and Ray's own processes. `mib_per_1000_steps` is the slope of a straight line through the readings, without the
first third, in which libraries still allocate what they keep.
"""

import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer

from benchmarks.node_figures import lines
from benchmarks.nodes import ROOT
from benchmarks.random_policies import untrained
from benchmarks.report import write_report

LEFT_OUT = 1 / 3
"""Share of the readings, from the first on."""
FEWEST = 5
"""Readings of a process that is counted; others come and go."""
Reading = tuple[int, float]
"""Steps so far, and MiB."""


def main(
    out: Annotated[Path, typer.Option(help="JSON file to write.")],
    minutes: Annotated[float, typer.Option(help="How long to read, from the first step on.")] = 15.0,
    short: Annotated[bool, typer.Option(help="Some seconds; only to see that it runs.")] = False,
) -> None:
    seconds, every_s = (6.0, 1.0) if short else (60 * minutes, 10.0)
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        yaml = write_yaml(run_dir, untrained(Path(folder) / "policy"))
        readings, exit_code = read_while_it_runs(yaml, run_dir, seconds, every_s)
        times = [line["time"] for line in lines(run_dir, "train")]
    summary = {
        "steps": len(times),
        "steps_per_s": (len(times) - 1) / (times[-1] - times[0]),
        "exit_code": exit_code,
        "mib_per_1000_steps": {name: slope(read) for name, read in sorted(readings.items()) if len(read) >= FEWEST},
        "mib": {name: read[-1][1] for name, read in sorted(readings.items())},
    }
    write_report(out, summary, raw=readings)


def write_yaml(run_dir: Path, policy: Path) -> Path:
    experiment = {
        "run_dir": str(run_dir),
        "seed": 0,
        "policy": {"path": str(policy)},
        "environments": {"math/Arithmetic-v0": {}, "tools/Store-v0": {}},
        "train": {
            **{"num_steps": 10**6, "num_prompts": 1, "group_size": 2, "max_staleness": 1},
            **{"checkpoint_every": 200, "keep_rollouts": 100},
        },
        "rollout": {"cpus_per_worker": 0.5, "max_in_flight": 4, "max_reply_tokens": 4, "kv_cache_gib": 0.1},
        "evaluation": {"num_tasks": 1, "every": 500},
        "ray": {"address": "local"},
    }
    yaml = run_dir.with_suffix(".yaml")
    yaml.write_text(json.dumps(experiment))
    return yaml


def read_while_it_runs(
    yaml: Path, run_dir: Path, seconds: float, every_s: float
) -> tuple[Mapping[str, list[Reading]], int]:
    """Readings by process; the run is stopped at the end, as by Ctrl-C, and its exit code returned."""
    readings: dict[str, list[Reading]] = defaultdict(list)
    log = run_dir.with_suffix(".log")
    with log.open("w") as said:
        run = subprocess.Popen([sys.executable, "-m", "rl", "train", str(yaml)], cwd=ROOT, stdout=said, stderr=said)
        begun: float | None = None
        while run.poll() is None and (begun is None or time.monotonic() - begun < seconds):
            time.sleep(every_s)
            num_steps = len(lines(run_dir, "train")) if (run_dir / "metrics.jsonl").is_file() else 0
            if num_steps:
                begun = begun or time.monotonic()
                for name, mib in memory(run.pid).items():
                    readings[name].append((num_steps, mib))
        run.send_signal(signal.SIGINT)
        exit_code = run.wait(120)
    if not readings or exit_code != 128 + signal.SIGINT:
        raise RuntimeError(f"the run ended with exit code {exit_code}: {log.read_text()[-4000:]}")
    return readings, exit_code


def memory(driver: int) -> dict[str, float]:
    """MiB of anonymous memory, by process of the run. Unlike unique memory, which depends on who else maps the same
    libraries, this does not change when other runs come and go.
    """
    found: dict[str, float] = defaultdict(float)
    for process in [psutil.Process(driver), *psutil.Process(driver).children(recursive=True)]:
        try:
            info = process.memory_info()
            name, mib = name_of(process, driver), (info.rss - info.shared) / 2**20
            if mib:  # else it is about to be gone
                found[name] += mib
        except psutil.Error:  # it has ended
            continue
    return dict(found)


def name_of(process: psutil.Process, driver: int) -> str:
    """Processes of a pool that come and go have one name."""
    if process.pid == driver:
        return "driver"
    title = " ".join(process.cmdline())
    known = {"ray::RolloutWorker": "worker", "ray::LearnerProcess": "learner", "raylet/raylet": "raylet"}
    known |= {"gcs_server": "gcs", "ray::IDLE": "idle workers of Ray", "/ray/": "Ray's agents and monitors"}
    return next((name for part, name in known.items() if part in title), "others")


def slope(readings: Sequence[Reading]) -> float:
    """MiB per 1,000 steps."""
    counted: list[Any] = list(readings[int(len(readings) * LEFT_OUT) :])
    return 1000 * statistics.linear_regression(*zip(*counted, strict=True)).slope


if __name__ == "__main__":
    typer.run(main)
