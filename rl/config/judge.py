"""Which judge does a run serve for its environments?"""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from rl.config.section import Positive, Section


class JudgeConfig(Section):
    """A judge that the run serves beside its engines, as `python -m rl serve` does, for environments that ask one.

    They find it through POLYGYM_JUDGE_URL and POLYGYM_JUDGE_MODEL, which the run sets for its workers; the options
    `url` and `model` of an environment come first. It reserves what a worker does (`rollout.cpus_per_worker`,
    `rollout.gpus_per_worker`).
    """

    path: Path
    """Folder with the judge's Hugging Face checkpoint, or a run."""
    max_tokens: Positive = 4096
    """Longest conversation with the judge, its answer included."""
    max_in_flight: Positive = 64
    """Questions that it answers at the same time."""
    kv_cache_gib: Annotated[float, Field(gt=0)] | None = None
    """Memory of its cache; null uses 0.5 GiB on CPUs, and on GPUs what its weights leave of
    `rollout.gpu_memory_share`."""
