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
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import psutil
import typer

from benchmarks.report import write_report

Side = Literal["polygym", "trl"]
SIDES: tuple[Side, ...] = ("polygym", "trl")
NUM_CORES = 2
MAX_PROMPT_TOKENS = 128
MEMORY_EVERY_S = 0.5
PUBLISHED_WEIGHTS = "/dev/shm/polygym-weights-"


@dataclass(frozen=True, slots=True)
class Size:
    """What both sides train on."""

    turns: int
    """Of each side."""
    steps: int
    """Measured steps of a turn, after one that warms up."""
    reply_tokens: int
    """Of the longest reply."""
    engines: int
    """Of polygym, one thread each."""
    num_prompts: int = 4
    group_size: int = 8
    rows_per_micro_batch: int = 8


SHORT = Size(turns=1, steps=1, reply_tokens=4, engines=1, num_prompts=1, group_size=2, rows_per_micro_batch=2)


def main(
    out: Annotated[Path, typer.Option(help="JSON file to write.")],
    policy: Annotated[Path, typer.Option(help="Policy folder.")] = Path("models/smollm2-135m"),
    turns: Annotated[int, typer.Option(help="Turns of each side.")] = 3,
    steps: Annotated[int, typer.Option(help="Measured steps a turn, after one to warm up.")] = 4,
    reply_tokens: Annotated[int, typer.Option(help="Longest reply.")] = 128,
    engines: Annotated[int, typer.Option(help="polygym's engines, one thread each.")] = NUM_CORES,
    precision: Annotated[str, typer.Option(help="bf16 or float32, on both sides.")] = "bf16",
    short: Annotated[bool, typer.Option(help="One turn of one step on two short replies; only to see it run.")] = False,
) -> None:
    """Run both sides in turns and write every step's figures, and a summary."""
    size = SHORT if short else Size(turns, steps, reply_tokens, engines)
    cores = sorted(os.sched_getaffinity(0))[:NUM_CORES]
    os.sched_setaffinity(0, cores)  # all processes started from here inherit it
    settings = experiment(policy, size, precision)
    results: list[dict[str, Any]] = []
    for turn in range(size.turns):
        for side in SIDES:
            with tempfile.TemporaryDirectory() as folder:
                # Turns see different prompts, sides the same.
                results.append(play_turn(side, {**settings, "seed": turn}, Path(folder)))
            typer.echo(f"turn {turn}, {side}: {tokens_per_s([results[-1]]):.1f} tokens/s")
    versions = {name: version(name) for name in ("torch", "trl", "transformers", "ray")}
    write_report(out, summary(results), versions=versions, size=asdict(size), settings=settings, turns=results)


def experiment(policy: Path, size: Size, precision: str) -> dict[str, Any]:
    """polygym's configuration, which TRL's is derived from; without folder and seed."""
    max_tokens = size.reply_tokens + MAX_PROMPT_TOKENS
    return {
        "policy": {"path": str(policy), "chat": "template", "max_tokens": max_tokens},
        "precision": precision,
        "environments": {"math/GradeSchool-v0": {"options": {"source": "easy"}}},
        "train": {
            "num_steps": size.steps + 1,
            "num_prompts": size.num_prompts,
            "group_size": size.group_size,
            "checkpoint_every": size.steps + 2,
        },
        "learner": {
            "cpus": NUM_CORES,  # also its threads
            "learning_rate": 3e-6,
            "warmup_steps": 0,
            "tokens_per_micro_batch": size.rows_per_micro_batch * max_tokens,
        },
        "rollout": {
            "num_workers": size.engines,
            "max_reply_tokens": size.reply_tokens,
            "max_in_flight": size.num_prompts * size.group_size,
            "kv_cache_gib": 0.25,
        },
        "evaluation": {"num_tasks": 1},
        "ray": {"address": "local"},
    }


def play_turn(side: Side, settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Train once; the steps' seconds and sampled tokens, and the peak of memory until the last step's end."""
    run_dir, yaml = folder / "run", folder / "experiment.yaml"
    yaml.write_text(json.dumps({"run_dir": str(run_dir), **settings}))  # JSON is YAML
    memory = memory_of_training(side, yaml, folder / "log")
    steps = read_steps(side, run_dir / "metrics.jsonl")
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


def memory_of_training(side: Side, yaml: Path, log: Path) -> list[tuple[float, dict[str, int]]]:
    """Train in a process; gives what `memory_by_process` saw, and when. Raises `RuntimeError` if the process failed."""
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
    return memory


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


def tokens_per_s(turns: Sequence[Mapping[str, Any]]) -> float:
    """Sampled tokens by the seconds of whole steps, all measured steps of these turns together."""
    steps = [step for turn in turns for step in turn["steps"]]
    return sum(step["sampled_tokens"] for step in steps) / sum(step["seconds"] for step in steps)


def summary(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
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
