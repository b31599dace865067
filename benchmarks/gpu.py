"""How fast is one GPU? Trained tokens/s and memory of the learner, quantising, sampled tokens/s of the engine.

    python -m benchmarks.gpu --out benchmarks/results/gpu.json     (about five minutes, one card)

Policies have random weights. Everything runs in this process, one part after the other; the engine last, because it
keeps its memory. A part that fails is reported with its error, and the others go on. The report is written after each
part. On a machine without a GPU only `--short` runs, on the CPU, with tiny policies.
"""

import asyncio
import gc
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.adapter import Size as Rows
from benchmarks.adapter import random_samples
from benchmarks.learner import Size as Groups
from benchmarks.learner import random_samples as random_groups
from benchmarks.learner import with_advantages
from benchmarks.pipeline import Size as Replies
from benchmarks.pipeline import sample
from benchmarks.random_policies import active_weights, random_policies, saved
from benchmarks.report import write_report
from rl.config.experiment import ExperimentConfig
from rl.learner.learner import Learner
from rl.precision.formats import FORMATS

WAYS: Mapping[str, Mapping[str, Any]] = {
    "plain": {},
    "compiled": {"compile": True},
    "activation_checkpointing": {"activation_checkpointing": True},
    "both": {"compile": True, "activation_checkpointing": True},
}
SHARING: Mapping[str, Mapping[str, Any]] = {
    "padded": {"share_prefixes": False},
    "shared": {},
    "shared_compiled": {"compile": True},
}


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured, and how often."""

    rows: Rows
    groups: Groups
    replies: Replies
    tokens_per_micro_batch: int
    product: int
    """Width of the square matrix product that gives the card's own rate."""
    num_experts: int
    """Matrices of 2,048 x 2,048 that are quantised at once."""
    num_repeats: int


FULL = Size(
    Rows(num_rows=16, num_tokens=2048, num_repeats=3),
    Groups(num_groups=6, num_members=8, num_prompt_tokens=512, num_reply_tokens=512),
    Replies(num_in_flight=256, num_reply_tokens=256, num_repeats=3),
    tokens_per_micro_batch=8192,
    product=8192,
    num_experts=64,
    num_repeats=10,
)
SHORT = Size(
    Rows(num_rows=2, num_tokens=16, num_repeats=1),
    Groups(num_groups=2, num_members=2, num_prompt_tokens=4, num_reply_tokens=4, num_repeats=1),
    Replies(num_in_flight=2, num_reply_tokens=4, num_repeats=1),
    tokens_per_micro_batch=64,
    product=64,
    num_experts=1,
    num_repeats=1,
)


def main(
    out: Annotated[Path, typer.Option(help="JSON file to write.")],
    short: Annotated[bool, typer.Option(help="Tiny policies, once; only to see that it runs.")] = False,
    parts: Annotated[
        str, typer.Option(help="Parts to measure, with commas between them.")
    ] = "card,learner,sharing,nvfp4,engine",
) -> None:
    if not (short or torch.cuda.is_available()):
        raise typer.BadParameter("there is no CUDA device; only --short runs without one")
    size, results, errors = SHORT if short else FULL, {}, {}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    details = {"card": torch.cuda.get_device_name() if device.type == "cuda" else "none", "torch": torch.__version__}
    with tempfile.TemporaryDirectory() as folder:
        for name, part in _parts(Path(folder), size, device, short).items():
            if name.partition(":")[0] not in parts.split(","):
                continue
            try:
                results[name.replace(":", " ")] = part()
            except Exception:
                errors[name] = traceback.format_exc()
            _free(device)
            write_report(out, _summary(results, errors), raw=results, errors=errors, **details)


def _parts(folder: Path, size: Size, device: torch.device, short: bool) -> dict[str, Callable[[], dict[str, Any]]]:
    parts: dict[str, Callable[[], dict[str, Any]]] = {"card": lambda: card(size, device)}
    for name, config in random_policies(short).items():
        for way, keys in on_device(WAYS, device).items():
            parts[f"learner:{name} {way}"] = lambda name=name, config=config, keys=keys: learner(
                saved(config, folder / name), size, device, keys
            )
        parts[f"sharing:{name}"] = lambda name=name, config=config: sharing(saved(config, folder / name), size, device)
    parts["nvfp4"] = lambda: nvfp4(size, device)
    name, config = next(iter(random_policies(short).items()))
    parts["engine"] = lambda: asyncio.run(engine(saved(config, folder / name), size, device))
    return parts


def on_device(ways: Mapping[str, Mapping[str, Any]], device: torch.device) -> Mapping[str, Mapping[str, Any]]:
    """On CPUs without those that compile, which takes a C++ compiler minutes."""
    return {name: keys for name, keys in ways.items() if device.type == "cuda" or not keys.get("compile")}


def card(size: Size, device: torch.device) -> dict[str, Any]:
    """What the card itself does: a bfloat16 matrix product, and a copy, counting bytes read and written."""
    one, other = (torch.randn(size.product, size.product, device=device, dtype=torch.bfloat16) for _ in range(2))
    source = torch.randn(16 * size.product**2 // 4, device=device)
    target = torch.empty_like(source)
    seconds = _seconds(lambda: one @ other, size, device)
    copying = _seconds(lambda: target.copy_(source), size, device)
    return {
        "product_tflops": [2 * size.product**3 / each / 1e12 for each in seconds],
        "copy_gb_per_s": [2 * source.nbytes / each / 1e9 for each in copying],
    }


def learner(policy: Path, size: Size, device: torch.device, keys: Mapping[str, Any]) -> dict[str, Any]:
    """Updates on rows of which the second half is trained. Operations are 6 a weight that computes and token, without
    attention's own and without those of a second forward pass."""
    config = experiment(policy, size, device, keys)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    made = Learner(policy, config)
    rows = random_samples(size.rows)
    made.update(rows)  # not counted: memory is allocated
    updates = [made.update(rows) for _ in range(size.rows.num_repeats)]
    active = active_weights(made.model)
    return {
        "tokens_per_s": [update.num_tokens / update.seconds for update in updates],
        "tflops": [6 * active * update.num_tokens / update.seconds / 1e12 for update in updates],
        "peak_gib": [(torch.cuda.max_memory_allocated() if device.type == "cuda" else 0) / 2**30],
        "weights": [sum(weight.numel() for weight in made.model.parameters())],
        "active_weights": [active],
    }


def sharing(policy: Path, size: Size, device: torch.device) -> dict[str, Any]:
    """Tokens of rows a second for groups whose replies share a prompt, all with an advantage: each row whole, or the
    prompt computed once."""
    figures: dict[str, Any] = {}
    for way, keys in on_device(SHARING, device).items():
        made = Learner(policy, experiment(policy, size, device, keys))
        rows = with_advantages(random_groups(size.groups, made.model.config.vocab_size))
        made.update(rows)  # not counted: memory is allocated
        updates = [made.update(rows) for _ in range(size.groups.num_repeats)]
        figures[f"{way}_row_tokens_per_s"] = [update.num_row_tokens / update.seconds for update in updates]
        figures[f"{way}_tokens"] = [updates[0].num_tokens]
        figures[f"{way}_grad_norm"] = [updates[0].grad_norm]
        del made
        _free(device)
    return figures


def nvfp4(size: Size, device: torch.device) -> dict[str, Any]:
    """Quantising and folding of float32 experts; bytes are those of the weights."""
    number_format = FORMATS["nvfp4"]()
    weights = torch.randn(size.num_experts, 2048, 2048, device=device)
    amax = weights.abs().amax(dim=(1, 2))
    copy = torch.empty_like(weights)
    parts = number_format.quantise(weights, amax)
    ways = {
        "copy": lambda: copy.copy_(weights),
        "quantise": lambda: number_format.quantise(weights, amax),
        "fold": lambda: number_format.fold(weights, amax),
        "dequantise_to_bfloat16": lambda: number_format.dequantise(parts, torch.bfloat16),
    }
    rates = {
        f"{name}_gb_per_s": [weights.nbytes / each / 1e9 for each in _seconds(way, size, device)]
        for name, way in ways.items()
    }
    return rates


async def engine(policy: Path, size: Size, device: torch.device) -> dict[str, Any]:
    """Sampled tokens/s with many in flight, prompts of 30 tokens; the first repetition is not counted."""
    from rl.engine.vllm_core import VllmEngine

    started = time.perf_counter()
    served = VllmEngine(policy, experiment(policy, size, device, {}), lockstep_steps=0)
    start_s = time.perf_counter() - started
    try:
        rates = [await sample(served, size.replies, repeat, None) for repeat in range(size.replies.num_repeats + 1)]
    finally:
        served.shutdown()
    return {"sampled_tokens_per_s": rates[1:], "start_s": [start_s]}


def experiment(policy: Path, size: Size, device: torch.device, keys: Mapping[str, Any]) -> ExperimentConfig:
    on_gpu = device.type == "cuda"
    tree = {
        "run_dir": tempfile.gettempdir(),
        "seed": 0,
        "policy": {"path": str(policy), "chat": "template", "max_tokens": 2048 if on_gpu else 64},
        "precision": "bf16",
        "environments": {"math/Arithmetic-v0": {}},
        "learner": {"tokens_per_micro_batch": size.tokens_per_micro_batch, "gpus": int(on_gpu), **keys},
        "rollout": {
            "max_in_flight": size.replies.num_in_flight,
            "max_reply_tokens": size.replies.num_reply_tokens,
            **({"gpus_per_worker": 0.5, "gpu_memory_share": 0.5} if on_gpu else {"kv_cache_gib": 0.25}),
        },
        "train": {"num_steps": 100},
        "loss": {"sequence_mismatch_max": 1e9},  # the logprobs of random replies are made up
    }
    return ExperimentConfig.model_validate(tree)


def _seconds(run: Callable[[], object], size: Size, device: torch.device) -> Iterator[float]:
    """Of each repetition, without the first two."""
    for repeat in range(size.num_repeats + 2):
        _wait(device)
        started = time.perf_counter()
        run()
        _wait(device)
        if repeat >= 2:
            yield time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _summary(results: Mapping[str, Mapping[str, list[float]]], errors: Mapping[str, str]) -> dict[str, Any]:
    medians = {part: {name: statistics.median(values) for name, values in raw.items()} for part, raw in results.items()}
    return {**medians, "failed_parts": len(errors)}


if __name__ == "__main__":
    typer.run(main)
