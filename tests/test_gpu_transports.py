"""On GPUs: engines answer with the hash of what the learner sent, also an engine that was replaced.

NCCL needs two GPUs, CUDA IPC one; machines with fewer skip them. All but the transfer between processes is tested on
CPUs, in test_nccl.py, test_nccl_engine.py and test_ipc.py.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from rl.chat.formats.nemotron import NemotronFormat
from rl.cluster.cluster import cluster
from rl.config.experiment import ExperimentConfig
from rl.config.policy import TinyHybrid
from rl.learner.group import LearnerGroup
from rl.policies import build_policy
from rl.rollouts.pool import WorkerPool
from tests.makers import make_config
from tests.test_engine import MAX_TOKENS
from tests.test_ranks import samples_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
NUM_GPUS = {"nccl": 2, "ipc": 1}


def config_for(folder: Path, transport: str, precision: str, adapter: dict[str, Any] | None) -> ExperimentConfig:
    gpus = NUM_GPUS[transport] / 2
    rollout = {"max_in_flight": 12, "kv_cache_gib": 0.25, "gpus_per_worker": gpus, "gpu_memory_share": 0.3}
    return make_config(
        folder / "run",
        policy={"path": folder / "policy", "max_tokens": MAX_TOKENS},
        precision=precision,
        weights=transport,
        rollout=rollout,
        learner={"learning_rate": 2e-3, "warmup_steps": 0, "gpus": gpus, "adapter": adapter},
        ray={"address": "local"},
    )


@pytest.mark.parametrize(("precision", "adapter"), [("bf16", None), ("nvfp4", None), ("bf16", {"rank": 4})])
@pytest.mark.parametrize("transport", NUM_GPUS)
def test_engines_answer_with_the_hash_of_what_was_sent(
    tmp_path: Path, transport: str, precision: str, adapter: dict[str, Any] | None
) -> None:
    if torch.cuda.device_count() < NUM_GPUS[transport]:
        pytest.skip(f"{transport} needs {NUM_GPUS[transport]} CUDA devices")
    policy = tmp_path / "policy"
    build_policy(TinyHybrid(), ["<|im_start|>user\n1+1=?<|im_end|>\n"] * 200, policy, 0, NemotronFormat())
    config = config_for(tmp_path, transport, precision, adapter)
    with cluster(config) as joined:
        pool = WorkerPool(config, policy, joined.places.engines)
        learner = LearnerGroup(config, policy, places=joined.places.learner)
        try:
            pool.wait_until_ready()
            learner.describe()
            for _ in range(2):  # the second version goes to the same group
                learner.update(samples_of(policy))
                pool.load_weights(learner.publish())  # compares the hashes
            pool._replace(0, RuntimeError("as if it had died"))
            learner.update(samples_of(policy))
            pool.load_weights(learner.publish())
        finally:
            learner.shutdown()
            pool.shutdown()
