"""How do polygym's GRPO steps compare with those of TRL's GRPOTrainer, in tokens per second and in memory?

    python -m benchmarks.against_trl --out benchmarks/results/against_trl.json

Both sides train SmolLM2-135M on the same prompts with the same batch, micro-batch, learning rate, temperature, loss
normalisation and number format. They take turns on the same two cores; each turn is a process of its own with a warm-up
step. TRL samples with transformers' `generate`, its default: its other sampler, vLLM, cannot be had on CPUs.

What differs: polygym computes with one thread in each of its two engines and with two in its learner, which waits while
the engines sample; TRL computes with two threads in its one process.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import psutil
import typer

Side = Literal["polygym", "trl"]
SIDES: tuple[Side, ...] = ("polygym", "trl")
NUM_CORES = 2
ROWS_PER_MICRO_BATCH = 8
MEMORY_EVERY_S = 0.5
PUBLISHED_WEIGHTS = "/dev/shm/polygym-weights-"


def main(
    out: Annotated[Path, typer.Option(help="JSON file to write.")],
    policy: Annotated[Path, typer.Option(help="Policy folder.")] = Path("models/smollm2-135m"),
    turns: Annotated[int, typer.Option(help="Turns of each side.")] = 3,
    steps: Annotated[int, typer.Option(help="Measured steps a turn, after one to warm up.")] = 4,
    reply_tokens: Annotated[int, typer.Option(help="Longest reply.")] = 128,
    engines: Annotated[int, typer.Option(help="polygym's engines, one thread each.")] = NUM_CORES,
    precision: Annotated[str, typer.Option(help="bf16 or float32, on both sides.")] = "bf16",
) -> None:
    """Run both sides in turns and write every step's figures, and a summary."""
    cores = sorted(os.sched_getaffinity(0))[:NUM_CORES]
    os.sched_setaffinity(0, cores)  # all processes started from here inherit it
    results: list[dict[str, Any]] = []
    settings: dict[str, Any] = {}
    for turn in range(turns):
        for side in SIDES:
            with tempfile.TemporaryDirectory() as folder:
                settings = experiment(Path(folder) / "run", policy, turn, steps, reply_tokens, engines, precision)
                results.append(play_turn(side, settings, Path(folder)))
            typer.echo(f"turn {turn}, {side}: {tokens_per_s([results[-1]]):.1f} tokens/s")
    del settings["run_dir"], settings["seed"]
    report = {"machine": machine(cores), "settings": settings, "turns": results, "summary": summary(results)}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=2) + "\n")
    typer.echo(json.dumps(report["summary"], indent=2))


def experiment(
    run_dir: Path, policy: Path, turn: int, steps: int, reply_tokens: int, engines: int, precision: str
) -> dict[str, Any]:
    """polygym's configuration of one turn, which TRL's is derived from. Turns see different prompts, sides the same."""
    max_tokens = reply_tokens + 128
    return {
        "run_dir": str(run_dir),
        "seed": turn,
        "policy": {"path": str(policy), "chat": "template", "max_tokens": max_tokens},
        "precision": precision,
        "environments": {"math/GradeSchool-v0": {"options": {"source": "easy"}}},
        "train": {"num_steps": steps + 1, "num_prompts": 4, "group_size": 8, "checkpoint_every": steps + 2},
        "learner": {
            "cpus": NUM_CORES,  # also its threads
            "learning_rate": 3e-6,
            "warmup_steps": 0,
            "tokens_per_micro_batch": ROWS_PER_MICRO_BATCH * max_tokens,
        },
        "rollout": {
            "num_workers": engines,
            "max_reply_tokens": reply_tokens,
            "max_in_flight": 32,
            "kv_cache_gib": 0.25,
        },
        "evaluation": {"num_tasks": 1},
        "ray": {"address": "local"},
    }


def play_turn(side: Side, settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Train once; the steps' seconds and sampled tokens, and the peak of memory until the last step's end."""
    yaml, log = folder / "experiment.yaml", folder / "log"
    yaml.write_text(json.dumps(settings))  # JSON is YAML
    module = ["rl", "train"] if side == "polygym" else ["benchmarks.trl_side"]
    threads = {"OMP_NUM_THREADS": str(NUM_CORES), "HF_HUB_OFFLINE": "1"}
    memory: list[tuple[float, dict[str, int]]] = []
    with log.open("w") as file:
        command = [sys.executable, "-m", *module, str(yaml)]
        process = subprocess.Popen(command, env={**os.environ, **threads}, stdout=file, stderr=file)
        try:
            while process.poll() is None:
                memory.append((time.time(), memory_by_process(process.pid)))
                time.sleep(MEMORY_EVERY_S)
        finally:
            process.terminate()
            process.wait()
    if process.returncode != 0:
        raise RuntimeError(f"{side} ended with exit code {process.returncode}:\n{log.read_text()[-3000:]}")
    steps = read_steps(side, Path(settings["run_dir"]) / "metrics.jsonl")
    _, peak = max(
        (sample for sample in memory if sample[0] <= steps[-1]["time"]), key=lambda sample: sum(sample[1].values())
    )
    return {
        "side": side,
        "steps": [
            {"seconds": step["time"] - before["time"], "sampled_tokens": step["sampled_tokens"]}
            for before, step in pairwise(steps)
        ],
        "peak_bytes": sum(peak.values()),
        "peak_bytes_by_process": dict(sorted(peak.items(), key=lambda item: -item[1])),
    }


def read_steps(side: Side, metrics: Path) -> list[dict[str, float]]:
    """When each step ended, its bookkeeping included, and the tokens that it sampled; the warm-up step is the first."""
    name = "update/num_loss_tokens" if side == "polygym" else "sampled_tokens"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    return [{"time": line["time"], "sampled_tokens": line[name]} for line in lines if line["kind"] == "train"]


def memory_by_process(pid: int) -> dict[str, int]:
    """Bytes of each process of the tree: its proportional set size, in which shared pages count once over all.

    Published weights lie in shared memory, mostly mapped by no process, so their files count extra; while an engine
    reads a version it counts twice, against polygym.
    """
    try:
        root = psutil.Process(pid)
        processes = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return {}
    sizes: dict[str, int] = {}
    for process in processes:
        try:
            sizes[f"{process.name()} {process.pid}"] = process.memory_full_info().pss
            for link in Path(f"/proc/{process.pid}/fd").iterdir():
                folder = Path(os.path.realpath(link))
                if str(folder).startswith(PUBLISHED_WEIGHTS) and folder.is_dir():
                    sizes[str(folder)] = sum(file.stat().st_size for file in folder.iterdir())
        except (psutil.Error, OSError):  # it has ended since
            continue
    return sizes


def machine(cores: list[int]) -> dict[str, Any]:
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "")
    versions = {name: version(name) for name in ("torch", "trl", "transformers", "ray")}
    return {"cpu": cpu.partition(": ")[2] or platform.machine(), "cores": cores, "versions": versions}


def tokens_per_s(turns: list[dict[str, Any]]) -> float:
    """Sampled tokens by the seconds of whole steps, all measured steps of these turns together."""
    steps = [step for turn in turns for step in turn["steps"]]
    return sum(step["sampled_tokens"] for step in steps) / sum(step["seconds"] for step in steps)


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Both sides' figures and their ratios, polygym's by TRL's."""
    sides: dict[str, dict[str, Any]] = {}
    for side in SIDES:
        turns = [result for result in results if result["side"] == side]
        steps = [step for turn in turns for step in turn["steps"]]
        sides[side] = {
            "tokens_per_s": tokens_per_s(turns),
            "tokens_per_s_by_turn": [tokens_per_s([turn]) for turn in turns],
            "seconds_per_step": statistics.mean(step["seconds"] for step in steps),
            "tokens_per_step": statistics.mean(step["sampled_tokens"] for step in steps),
            "peak_gib": max(turn["peak_bytes"] for turn in turns) / 2**30,
        }
    ours, theirs = sides["polygym"], sides["trl"]
    ratios = {name: ours[name] / theirs[name] for name in ("tokens_per_s", "peak_gib")}
    return {**sides, "polygym_by_trl": ratios}


if __name__ == "__main__":
    typer.run(main)
