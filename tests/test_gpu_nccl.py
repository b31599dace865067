"""On two GPUs: the learner broadcasts versions to an engine over NCCL, also to one that was replaced.

Machines with fewer GPUs skip it. Everything but the network is tested on CPUs, in test_nccl.py and test_nccl_engine.py.
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
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two CUDA devices"),
]


def config_for(folder: Path, precision: str, adapter: dict[str, Any] | None) -> ExperimentConfig:
    return make_config(
        folder / "run",
        policy={"path": folder / "policy", "max_tokens": MAX_TOKENS},
        precision=precision,
        weights="nccl",
        rollout={"max_in_flight": 12, "kv_cache_gib": 0.25, "gpus_per_worker": 1},
        learner={"learning_rate": 2e-3, "warmup_steps": 0, "gpus": 1, "adapter": adapter},
        ray={"address": "local"},
    )


@pytest.mark.parametrize(("precision", "adapter"), [("bf16", None), ("nvfp4", None), ("bf16", {"rank": 4})])
def test_engines_answer_with_the_hash_of_what_was_sent(
    tmp_path: Path, precision: str, adapter: dict[str, Any] | None
) -> None:
    policy = tmp_path / "policy"
    build_policy(TinyHybrid(), ["<|im_start|>user\n1+1=?<|im_end|>\n"] * 200, policy, 0, NemotronFormat())
    config = config_for(tmp_path, precision, adapter)
    with cluster(config) as joined:
        pool, learner = WorkerPool(config, policy, joined.node), LearnerGroup(config, policy)
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
