"""What does an update cost, and what do rows without a gradient and shared prefixes cost it?

    python -m benchmarks.learner --out benchmarks/results/learner.json     (about ten minutes, two cores)

Updates of SmolLM2-135M and of the quickstart's tiny hybrid on groups of random replies, which share their prompts and
nothing else. The ways: `plain` computes every row whole, `left_out` leaves out rows without an advantage, `shared` also
computes what rows begin with once. They take turns, so that all see the same machine. The rate of a large matrix
product on the same threads is the machine's peak.
"""

import os

os.environ["OMP_NUM_THREADS"] = "2"

import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from benchmarks.random_policies import active_weights, untrained
from benchmarks.report import write_report
from rl.config.experiment import ExperimentConfig
from rl.cpu_bfloat16 import has_quick_bfloat16
from rl.data_types import Sample
from rl.learner.learner import Learner
from rl.tokens import Tokens

WAYS: Mapping[str, bool] = {"plain": False, "left_out": False, "shared": True}
"""Whether each shares prefixes."""
SHARE_WITHOUT_ADVANTAGE = 0.36
"""Of the groups: as in the quickstart's steps."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much is trained, and how often."""

    num_groups: int = 11
    num_members: int = 8
    num_prompt_tokens: int = 95
    num_reply_tokens: int = 90
    """Median; lengths are log-normal."""
    num_repeats: int = 3


SIZES = {"smollm2": Size(num_groups=3), "tiny_hybrid": Size(num_groups=16, num_prompt_tokens=45, num_reply_tokens=32)}
SHORT = Size(num_groups=2, num_members=2, num_prompt_tokens=4, num_reply_tokens=4, num_repeats=1)
PEAK_SIZE = 2048


def main(
    out: Annotated[Path, typer.Option(help="JSON file to write.")],
    policy: Annotated[Path, typer.Option(help="Policy folder.")] = Path("models/smollm2-135m"),
    precision: Annotated[str, typer.Option(help="Number format of that policy.")] = (
        "bf16" if has_quick_bfloat16() else "float32"
    ),
    short: Annotated[bool, typer.Option(help="Two groups, once; only to see that it runs.")] = False,
) -> None:
    raw: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        tiny = untrained(Path(folder) / "policy")
        for name, path, form, threads in (("smollm2", policy, precision, 2), ("tiny_hybrid", tiny, "float32", 1)):
            raw[name] = measured(path, form, threads, SHORT if short else SIZES[name])
    summary = {name: summarised(figures) for name, figures in raw.items()}
    write_report(out, summary, policy=str(policy), precision=precision, raw=raw)


def measured(path: Path, precision: str, threads: int, size: Size) -> dict[str, Any]:
    """Seconds of each way's updates, tokens, and operations a second of a large product before each repetition."""
    learners = {way: Learner(path, experiment(path, precision, threads, shares)) for way, shares in WAYS.items()}
    samples = random_samples(size, learners["plain"].model.config.vocab_size)
    updates: dict[str, list[Any]] = {way: [] for way in WAYS}
    peaks = []
    for _ in range(size.num_repeats + 1):
        peaks.append(peak(getattr(torch, learners["plain"]._config.precision.arithmetic)))
        for way, learner in learners.items():
            updates[way].append(learner.update(with_advantages(samples) if way == "plain" else samples))
    counted = {way: made[1:] for way, made in updates.items()}  # in the first memory is allocated
    return {
        "weights": active_weights(learners["plain"].model),
        "row_tokens": counted["plain"][0].num_row_tokens,
        "tokens_with_advantage": sum(len(sample.tokens) for sample in samples if sample.advantage),
        "peak": peaks,
        "seconds": {way: [update.seconds for update in made] for way, made in counted.items()},
        "tokens": {way: made[0].num_tokens for way, made in counted.items()},
        "grad_norm": {way: made[0].grad_norm for way, made in updates.items()},
    }


def summarised(raw: Mapping[str, Any]) -> dict[str, float]:
    """A token takes six operations for each weight that computes it."""
    seconds = {way: statistics.median(times) for way, times in raw["seconds"].items()}
    rate = 6 * raw["weights"] / statistics.median(raw["peak"])
    summary = {f"{way}_s": value for way, value in seconds.items()}
    summary |= {f"plain_by_{way}": seconds["plain"] / seconds[way] for way in WAYS if way != "plain"}
    for way in ("plain", "shared"):
        summary[f"{way}_share_of_peak_by_rows"] = rate * raw["row_tokens"] / seconds[way]
        summary[f"{way}_share_of_peak_by_work"] = rate * raw["tokens"][way] / seconds[way]
    summary["tokens_by_those_with_advantage"] = raw["tokens"]["shared"] / max(1, raw["tokens_with_advantage"])
    return summary


def peak(dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product: the best of five."""
    a = torch.randn(PEAK_SIZE, PEAK_SIZE, dtype=dtype)
    times = []
    for _ in range(5):
        started = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - started)
    return 2 * PEAK_SIZE**3 / min(times)


def experiment(path: Path, precision: str, threads: int, shares_prefixes: bool) -> ExperimentConfig:
    tree = {
        "run_dir": tempfile.gettempdir(),
        "seed": 0,
        "policy": {"path": str(path), "max_tokens": 512},
        "precision": precision,
        "environments": {"math/Arithmetic-v0": {}},
        "learner": {"cpus": threads, "share_prefixes": shares_prefixes, "tokens_per_micro_batch": 2048},
        "train": {"num_steps": 100},
        "loss": {"sequence_mismatch_max": 1e9},  # the logprobs of random replies are made up
    }
    return ExperimentConfig.model_validate(tree)


def random_samples(size: Size, vocabulary: int) -> list[Sample]:
    """Groups of random replies to random prompts, the first of them without an advantage."""
    rng = np.random.default_rng(0)
    samples = []
    for group in range(size.num_groups):
        prompt = rng.integers(vocabulary, size=size.num_prompt_tokens)
        teaches = group >= round(SHARE_WITHOUT_ADVANTAGE * size.num_groups)
        for member in range(size.num_members):
            length = max(1, int(size.num_reply_tokens * rng.lognormal(0.0, 0.4)))
            columns = {"logprob": [-3.0] * length, "version": [0] * length}
            reply = Tokens.make(rng.integers(vocabulary, size=length).tolist(), [True] * length, columns)
            tokens = Tokens.joined([Tokens.unsampled(prompt.tolist()), reply])
            samples.append(Sample("math/Arithmetic-v0", tokens, (-1.0) ** member if teaches else 0.0))
    return samples


def with_advantages(samples: Sequence[Sample]) -> list[Sample]:
    """The same rows, all of which are computed: a tiny advantage changes no gradient that can be seen."""
    return [replace(sample, advantage=sample.advantage or 1e-12) for sample in samples]


if __name__ == "__main__":
    typer.run(main)
