"""How many tokens a second does the supervised stage train, and how many does TRL as it comes?

    python -m benchmarks.supervised --out benchmarks/results/supervised.json     (about twenty minutes, two slow cores)

Both train the same rows, in batches of equally many, from the same policy: random words, prompts of log-normal length
that begin with one of a few instructions, replies of one length that are all that is trained. `length_aware` is the
stage with `learner.share_prefixes: false`. Each turn runs in a process of its own, and they take turns. Tokens are
those of the rows, without padding.
"""

import os

os.environ["OMP_NUM_THREADS"] = "2"

import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
import yaml

from benchmarks.random_policies import untrained
from benchmarks.report import write_report
from rl.config.read import load_config
from rl.cpu_bfloat16 import has_quick_bfloat16

WAYS = ("trl", "length_aware", "polygym")


@dataclass(frozen=True, slots=True)
class Size:
    """How much is trained; words are a token or two."""

    num_steps: int = 12
    batch_size: int = 16
    num_prompt_words: int = 60
    """Median."""
    num_reply_words: int = 30
    num_instruction_words: int = 40
    num_instructions: int = 4
    num_turns: int = 2
    """Of each way."""


SIZES = {"tiny_hybrid": Size(num_steps=40, batch_size=32), "smollm2": Size(num_steps=3, batch_size=8)}
SHORT = Size(2, 2, 4, 4, 4, 2, 1)
NUM_UNCOUNTED = 1
"""Steps in which memory is allocated."""


def main(
    out: Annotated[Path, typer.Option(help="JSON file to write.")],
    policy: Annotated[Path, typer.Option(help="Policy folder.")] = Path("models/smollm2-135m"),
    precision: Annotated[str, typer.Option(help="Number format of that policy.")] = (
        "bf16" if has_quick_bfloat16() else "float32"
    ),
    short: Annotated[bool, typer.Option(help="Two steps of two rows; only to see that it runs.")] = False,
) -> None:
    raw: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        tiny = untrained(Path(scratch) / "tiny", " ".join(WORDS))
        for name, path, form, threads in (("tiny_hybrid", tiny, "float32", 1), ("smollm2", policy, precision, 2)):
            size = SHORT if short else SIZES[name]
            folder = Path(scratch) / name
            folder.mkdir()
            (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in conversations(size)))
            raw[name] = {way: [] for way in WAYS}
            for turn in range(size.num_turns):
                for way in WAYS:
                    experiment = experiment_of(folder, path, form, threads, size, way, turn)
                    raw[name][way].append(trained(experiment, way))
    summary = {name: summarised(ways) for name, ways in raw.items()}
    write_report(
        out,
        summary,
        policy=str(policy),
        precision=precision,
        sizes={n: asdict(SHORT if short else SIZES[n]) for n in raw},
        raw=raw,
    )


WORDS = [f"{first}{second}" for first in ("ba", "ko", "li", "mu", "re") for second in ("n", "s", "t", "d", "la", "mi")]


def conversations(size: Size) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)

    def words(num: int) -> str:
        return " ".join(rng.choice(WORDS, size=num))

    instructions = [words(size.num_instruction_words) for _ in range(size.num_instructions)]
    rows = []
    for _ in range((size.num_steps + NUM_UNCOUNTED) * size.batch_size):
        prompt = words(max(1, int(size.num_prompt_words * rng.lognormal(0.0, 0.8))))
        said = {"system": str(rng.choice(instructions)), "user": prompt, "assistant": words(size.num_reply_words)}
        rows.append({"messages": [{"role": role, "content": content} for role, content in said.items()]})
    return rows


def experiment_of(folder: Path, policy: Path, precision: str, threads: int, size: Size, way: str, turn: int) -> Path:
    tree = {
        "run_dir": str(folder / f"{way}_{turn}"),
        "seed": 0,
        "policy": {"path": str(policy), "max_tokens": 1024},
        "precision": precision,
        "environments": {"math/Arithmetic-v0": {}},
        "learner": {"cpus": threads, "share_prefixes": way == "polygym"},
        "sft": {
            "data": str(folder / "rows.jsonl"),
            "num_steps": size.num_steps + NUM_UNCOUNTED,
            "batch_size": size.batch_size,
        },
        "train": {"num_steps": 1},
    }
    path = folder / f"{way}_{turn}.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def trained(experiment: Path, way: str) -> dict[str, Any]:
    """Tokens and seconds of the counted steps, and the last loss."""
    module = ["benchmarks.trl_stage"] if way == "trl" else ["sft", "train"]
    config = load_config(experiment, [])
    variables = {**os.environ, "OMP_NUM_THREADS": str(int(config.learner.cpus)), "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([sys.executable, "-m", *module, str(experiment)], check=True, env=variables)
    file = config.run_dir / ("steps.jsonl" if way == "trl" else "sft/metrics.jsonl")
    steps = [json.loads(line) for line in file.read_text().splitlines()][NUM_UNCOUNTED:]
    return {
        "tokens": sum(step["tokens"] for step in steps),
        "seconds": sum(step["seconds"] for step in steps),
        "last_loss": steps[-1]["loss"],
    }


def summarised(ways: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    rates = {way: statistics.median(turn["tokens"] / turn["seconds"] for turn in turns) for way, turns in ways.items()}
    figures = {f"{way}_tokens_per_s": rate for way, rate in rates.items()}
    return figures | {f"{way}_by_trl": rates[way] / rates["trl"] for way in WAYS[1:]}


if __name__ == "__main__":
    typer.run(main)
