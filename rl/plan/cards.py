"""How much memory does a card have, and how fast is it? A table of datasheets; a machine without a card is measured."""

import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rl.config.errors import ConfigError

GB = 10**9
TERA = 10**12


@dataclass(frozen=True, slots=True)
class Card:
    """A card, or a machine that computes on CPUs."""

    name: str
    memory_bytes: float
    """The datasheet's gigabytes as decimal ones, which is a little less than drivers report."""
    flops: Mapping[str, float]
    """Dense peak a second by dtype of the passes; float32 without TF32, which torch does not use by default."""
    bandwidth: float
    """Bytes of memory a second."""
    source: str
    is_gpu: bool = True


def _nvidia(name: str, gigabytes: float, bf16: float, float32: float, bandwidth: float, source: str) -> Card:
    """Gigabytes, TFLOP/s, TFLOP/s, GB/s."""
    flops = {"bfloat16": bf16 * TERA, "float32": float32 * TERA}
    return Card(name, gigabytes * GB, flops, bandwidth * GB, f"NVIDIA, {source}")


CARDS: Mapping[str, Card] = {
    card.name: card
    for card in (
        _nvidia("b200", 180, 2250, 75, 8000, "DGX B200 datasheet, the share of one of its eight GPUs"),
        _nvidia("h200", 141, 989.5, 67, 4800, "H200 Tensor Core GPU datasheet, SXM; half of the sparse number"),
        _nvidia("h100-80gb", 80, 989.5, 67, 3350, "H100 Tensor Core GPU datasheet, SXM; half of the sparse number"),
        _nvidia("a100-80gb", 80, 312, 19.5, 2039, "A100 80GB datasheet, SXM"),
        _nvidia("a100-40gb", 40, 312, 19.5, 1555, "A100 40GB datasheet"),
        _nvidia("l40s", 48, 362, 91.6, 864, "L40S datasheet"),
        _nvidia("l4", 24, 121, 30.3, 300, "L4 datasheet; half of the sparse number"),
        _nvidia("rtx-5090", 32, 209.5, 104.8, 1792, "RTX Blackwell architecture whitepaper, float32 accumulation"),
        _nvidia("rtx-4090", 24, 165.2, 82.6, 1008, "Ada architecture whitepaper, float32 accumulation"),
        _nvidia("rtx-3090", 24, 71, 35.6, 936, "GA102 architecture whitepaper, float32 accumulation"),
    )
}
"""By the name that `--gpu` takes."""


def chosen_card(name: str) -> Card | None:
    """The card of this name; without one that of this machine, and None if it has none.

    Raises `ConfigError` for a card that the table lacks.
    """
    if name:
        if name not in CARDS:
            raise ConfigError(f"--gpu {name}: there is no such card in the table; cards: {', '.join(CARDS)}")
        return CARDS[name]
    import torch

    return card_called(torch.cuda.get_device_name()) if torch.cuda.is_available() else None


def card_called(product: str) -> Card:
    """The card that a driver calls so, such as `NVIDIA H100 80GB HBM3`. Raises `ConfigError`."""
    words = set(re.split(r"[^a-z0-9]+", product.lower()))
    for card in CARDS.values():
        if words.issuperset(card.name.split("-")):
            return card
    raise ConfigError(f"the table has no {product}; name the card that is most like it: --gpu {' | '.join(CARDS)}")


def this_machine(num_threads: int) -> Card:
    """The host: its memory, and the speed that a matrix product and a sum reach now with so many threads."""
    import torch

    torch.set_num_threads(num_threads)
    flops = {}
    for dtype in ("float32", "bfloat16"):
        matrix = torch.ones(1024, 1024, dtype=getattr(torch, dtype))
        flops[dtype] = 2 * 1024**3 / _shortest_s(lambda matrix=matrix: matrix @ matrix)
    numbers = torch.ones(2**26)
    bandwidth = numbers.nbytes / _shortest_s(numbers.sum)
    return Card("this machine", host_bytes(), flops, bandwidth, f"measured now, {num_threads} threads", is_gpu=False)


def _shortest_s(compute: Callable[[], object]) -> float:
    times = []
    for _ in range(4):  # the first one warms up
        started = time.perf_counter()
        compute()
        times.append(time.perf_counter() - started)
    return min(times)


def host_bytes() -> float:
    """Memory of the machine, or of the container if that is limited (cgroup v2)."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return min(memory, int(text)) if text.isdigit() else memory
