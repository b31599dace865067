"""Wrong ranks, places, clusters and transports end `rl train` with exit code 2, before anything is started."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from rl.__main__ import main
from tests.families import write_policy

YAML = """run_dir: run
seed: 0
policy: {path: dense, max_tokens: 128}
environments: {math/Arithmetic-v0: {}}
train: {num_steps: 1}
rollout: {max_reply_tokens: 64}
ray: {address: local}
"""
TWO = "learner.num_ranks=2"
MOE = "policy.path=moe"
WRONG = {
    "no rank": (["learner.num_ranks=0"], ["learner.num_ranks", "more than 0"]),
    "half a rank": (["learner.num_ranks=1.5"], ["learner.num_ranks"]),
    "ranks of another project": (["learner.world_size=2"], ["learner.world_size", "num_ranks"]),
    "experts over more ranks than there are": ([MOE, "learner.expert_parallel=2"], ["(2) must divide num_ranks (1)"]),
    "experts over a part of the ranks": (
        [MOE, "learner.num_ranks=3", "learner.expert_parallel=2"],
        ["expert_parallel (2) must divide num_ranks (3)"],
    ),
    "experts that do not divide": (
        [MOE, "learner.num_ranks=3", "learner.expert_parallel=3"],
        ["has 4 experts a layer, which 3 ranks cannot share evenly", "fix: choose a divisor of 4"],
    ),
    "experts of a dense policy": ([TWO, "learner.expert_parallel=2"], ["has no routed experts", "fix: remove it"]),
    "dealt experts and an adapter": (
        [MOE, TWO, "learner.expert_parallel=2", "learner.adapter={}"],
        ["expert_parallel does not go with adapter"],
    ),
    "an exchange that does not exist": ([TWO, "learner.exchange=epoch"], ["learner.exchange", "micro_batch"]),
    "moments beside a GPU that is not there": ([TWO, "learner.offload_moments=true"], ["learner.gpus is 0"]),
    "more ranks than the machine's cluster": (
        ["learner.num_ranks=4", "ray.local_cpus=2"],
        ["ray.local_cpus (2) is less than the sum of the ranks'"],
    ),
    "ranks on GPUs that are not there": ([TWO, "learner.gpus=1"], ["2 learner ranks with 1 CPUs and 1 GPUs each"]),
    "policies saved more often than checkpoints": (
        [TWO, "train.save_policy_every=30"],
        ["save_policy_every (30) must be a multiple of checkpoint_every (20)"],
    ),
    "a policy left out that is the state": (
        ["train.save_policy_every=40"],
        ["train.save_policy_every leaves out a copy", "learner.num_ranks is 1", "remove it"],
    ),
    "an adapter left out": ([TWO, "train.save_policy_every=40", "learner.adapter={}"], ["learner.adapter is set"]),
    "negative restarts": (["train.num_learner_restarts=-1"], ["train.num_learner_restarts"]),
    "a placement of Ray": (["ray.placement=spread"], ["ray.placement", "separate"]),
    "ranks and engines that do not pair": (
        ["ray.placement=colocated", TWO],
        ["colocated puts one rank and one engine together, but learner.num_ranks is 2"],
    ),
    "a shared card that is too small": (
        ["ray.placement=colocated", "learner.gpus=0.7", "rollout.gpus_per_worker=0.7"],
        ["ray.placement: colocated lets a rank and an engine share a card"],
    ),
    "a store without room": (["ray.object_store_mib=10"], ["ray.object_store_mib", "80"]),
    "a transport of another project": (["weights=gloo"], ["weights", "object_store"]),
    "IPC between several ranks": (["weights=ipc", TWO], ["it connects one rank and one engine"]),
    "NCCL on CPUs": (["weights=nccl"], ["there is none for the learner and an engine"]),
    "a share of a GPU over NCCL": (
        ["weights=nccl", "learner.gpus=0.5", "rollout.gpus_per_worker=0.5", "rollout.gpu_memory_share=0.4"],
        ["cannot share one"],
    ),
    "caches of another project": (["rollout.cache_on_update=drop"], ["rollout.cache_on_update", "recompute"]),
    "a cluster that does not answer": (["ray.address=127.0.0.1:1"], ["no Ray cluster answers at '127.0.0.1:1'"]),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    here = tmp_path_factory.mktemp("work")
    write_policy("qwen3", here / "dense")
    write_policy("qwen3_moe", here / "moe")
    (here / "experiment.yaml").write_text(YAML)
    yield here


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_setting_is_refused(
    what: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides, told = WRONG[what]
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.argv", ["rl", "train", "experiment.yaml", *overrides])
    assert main() == 2
    text = " ".join(capsys.readouterr().err.split())
    assert all(words in text for words in told), text
    assert not (folder / "run").exists()
