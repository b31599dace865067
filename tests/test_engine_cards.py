"""An engine of two processes, as one with two GPUs has, on CPUs: both load a published version, and leave no files."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from vllm.platforms import current_platform

from rl.engine import vllm_core
from rl.engine.arguments import engine_arguments
from tests.makers import make_config
from tests.test_engine import MAX_TOKENS, Served, sample_many

if TYPE_CHECKING:
    from rl.engine.vllm_core import VllmEngine

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # it takes a minute to start
SHARED_MEMORY = Path("/dev/shm")


def two_processes(*args: Any) -> dict[str, Any]:
    return {**engine_arguments(*args), "tensor_parallel_size": 2, "distributed_executor_backend": "mp"}


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setattr(vllm_core, "engine_arguments", two_processes)

    def start(folder: Path) -> "VllmEngine":
        rollout = {"max_in_flight": 12, "kv_cache_gib": 0.25}
        config = make_config(policy={"path": folder, "max_tokens": MAX_TOKENS}, rollout=rollout)
        return vllm_core.VllmEngine(folder, config, lockstep_steps=0)

    before = set(SHARED_MEMORY.iterdir())
    served = Served(tmp_path, start)
    used = {path for path in set(SHARED_MEMORY.iterdir()) - before if "vllm_dist" in path.name}
    yield served
    served.engine.shutdown()
    # vLLM's kernels for CPUs without AVX-512 exchange data over sockets: there is nothing to leave.
    current_platform.import_kernels()
    assert bool(used) == hasattr(torch.ops._C, "init_shm_manager")
    assert not [path for path in used if path.exists()]


async def test_both_processes_load_what_was_published_and_agree_with_transformers(served: Served) -> None:
    turns = await sample_many(served.engine, 8, first_seed=1000)
    assert served.deltas(turns).abs().mean() < 1e-4
    for _ in range(2):
        served.perturb(0.01)
        source = served.publish()
        assert await asyncio.wait_for(served.engine.load_weights(source), 120) == source.hash
        turns = await sample_many(served.engine, 8, first_seed=2000)
        assert served.deltas(turns).abs().mean() < 1e-4
        assert {version for turn in turns for version in turn.policy_versions} == {source.version}
