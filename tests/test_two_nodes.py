"""A run on two nodes: learner and engine apart, and a node that goes takes only what its engine had not finished."""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from rl.chat.formats.nemotron import NemotronFormat
from rl.checks import store_bytes
from rl.cluster.actors import Deadline, start_actor
from rl.cluster.address import ClusterError
from rl.cluster.cluster import check_cluster, cluster
from rl.cluster.command import run_on_cluster
from rl.cluster.reserve import wait_until_living
from rl.config.experiment import ExperimentConfig
from rl.config.policy import TinyHybrid
from rl.learner.group import LearnerGroup
from rl.learner.policy import load_policy
from rl.policies import build_policy
from rl.rollouts.pool import WorkerPool
from rl.rollouts.worker import GroupSpec
from rl.runs.folder import RunFolder
from rl.supervised import supervised_stage
from rl.weights.names import checkpoint_tensors
from rl.weights.source import WeightSource
from tests.card import Card
from tests.makers import make_config, make_task
from tests.test_ranks import samples_of

pytestmark = pytest.mark.slow
SIZE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 128 * 2**20}


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy")
    build_policy(TinyHybrid(), ["<|im_start|>user\n1+1=?<|im_end|>\n"] * 200, folder, 0, NemotronFormat())
    return folder


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Two logical nodes of one CPU each on this machine, of which no other process knows."""
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # sockets need a short path
    monkeypatch.setenv("RAY_TMPDIR", folder)
    # With Ray's token, as everywhere else: this process keeps the mode of its first cluster.
    subprocess.run([sys.executable, "-m", "ray.scripts.scripts", "get-auth-token", "--generate"], check=True)
    made = Cluster(initialize_head=True, head_node_args={**SIZE, "include_dashboard": False})
    try:
        made.add_node(**SIZE)
        yield made
    finally:
        made.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def config_of(nodes: Cluster, policy: Path, run_dir: Path, max_tokens: int = 128, **sections: Any) -> ExperimentConfig:
    return make_config(
        run_dir,
        **{
            "weights": "object_store",
            "ray": {"address": nodes.address},
            "policy": {"path": policy, "max_tokens": max_tokens},
            "rollout": {"kv_cache_gib": 0.1, "max_in_flight": 4, "max_reply_tokens": 8},
            **sections,
        },
    )


def test_a_rank_and_its_engine_share_a_card(nodes: Cluster, policy: Path, tmp_path: Path) -> None:
    nodes.add_node(**{**SIZE, "num_cpus": 2, "num_gpus": 2})
    learner = {"num_ranks": 2, "cpus": 0.5, "gpus": 0.4}
    rollout = {"num_workers": 2, "cpus_per_worker": 0.5, "gpus_per_worker": 0.6}
    ray_keys = {"address": nodes.address, "placement": "colocated"}
    with cluster(config_of(nodes, policy, tmp_path, ray=ray_keys, learner=learner, rollout=rollout), policy) as joined:
        places = joined.places
        assert [place.bundle for place in places.learner] == [place.bundle for place in places.engines] == [0, 1]
        actors = [
            start_actor(Card, 0.5, gpus, place)
            for gpus, held in ((0.4, places.learner), (0.6, places.engines))
            for place in held
        ]
        told = [actor.call(Card.numbers).wait(Deadline(240, "starting", "none")) for actor in actors]
        assert told[:2] == told[2:] and told[0] != told[1]
        assert sorted(numbers for _, numbers in told[:2]) == [["0"], ["1"]]


def test_a_command_runs_where_there_is_room_and_prints_here(nodes: Cluster) -> None:
    lines: list[str] = []
    one, two = make_config(), make_config(learner={"cpus": 2.0}, train={"num_steps": 1, "start_timeout_s": 1.0})
    explained = run_on_cluster(str(nodes.address), ["rl", "explain", "seed"], one, lines.append)
    assert explained == 0 and any("Seed from which all randomness derives" in line for line in lines)
    assert run_on_cluster(str(nodes.address), ["rl", "explain", "sed"], one, lines.append) == 2
    with pytest.raises(ClusterError, match=r"starting rl explain seed took longer than 1 s; train\.start_timeout_s"):
        run_on_cluster(str(nodes.address), ["rl", "explain", "seed"], two, lines.append)


def test_the_supervised_stage_runs_on_the_cluster(
    nodes: Cluster, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sections = {"policy": {"build": {}}, "sft": {"num_steps": 2, "num_conversations": 64}, "learner": {"num_ranks": 2}}
    config = make_config(tmp_path / "run", ray={"address": nodes.address}, **sections)
    with RunFolder.open(config) as folder:
        assert (supervised_stage(config, folder) / "model.safetensors.index.json").is_file()
    assert capfd.readouterr().out.count("supervised step 2/2") == 1


def test_engines_on_another_node_answer_the_hash_of_two_updates(nodes: Cluster, policy: Path, tmp_path: Path) -> None:
    config = config_of(nodes, policy, tmp_path)
    with pytest.raises(ClusterError, match=r"all on one node \(weights\.transport shared_memory reaches no other\)"):
        check_cluster(config_of(nodes, policy, tmp_path, weights="shared_memory"))
    with pytest.raises(ClusterError, match=r"node \d+\.\d+\.\d+\.\d+, where .* lacks the folder /none/policy"):
        check_cluster(config_of(nodes, Path("/none/policy"), tmp_path))
    with pytest.raises(ClusterError, match=r"needs 200 MiB of the object store of a node, .* has 128 MiB"):
        check_cluster(config, 200 * 2**20)
    with cluster(config, policy, store_bytes(config, policy)) as joined:
        assert f"joined the Ray cluster at {nodes.address}: 2 nodes, 2 of Ray's 2 CPU slots free (" in joined.words
        (rank,), (engine,) = joined.places.learner, joined.places.engines
        assert rank.node_id != engine.node_id
        learner, pool = LearnerGroup(config, policy, places=[rank]), WorkerPool(config, policy, [engine])
        try:
            learner.describe()
            pool.wait_until_ready()
            hashes = set()
            for version in (1, 2):
                assert learner.update(samples_of(policy)).policy_version == version
                source = learner.publish()
                assert isinstance(source, WeightSource)
                pool.load_weights(source)  # raises unless each engine answers with the learner's hash
                hashes.add(source.hash)
                play = pool.play(0, [GroupSpec("0-0", make_task(), 2, 1.0)])
                (group,) = pool.collect(play, Deadline(120, "playing", "none"))
                replies = [turn.reply for rollout in group.rollouts for turn in rollout.turns]
                assert {int(each) for reply in replies for each in reply.columns["version"]} == {version}
            assert len(hashes) == 2
        finally:
            pool.shutdown()
            learner.shutdown()


def test_a_place_of_a_lost_node_can_be_used_again_when_ray_has_found_another(
    nodes: Cluster, policy: Path, tmp_path: Path
) -> None:
    """An actor that is started there earlier dies, so a learner that lost a node waits."""
    with cluster(config_of(nodes, policy, tmp_path), policy) as joined:
        places = [*joined.places.learner, *joined.places.engines]
        (lost,) = nodes.worker_nodes
        (far,) = [place for place in places if place.node_id == lost.node_id]
        nodes.remove_node(lost, allow_graceful=False)
        with pytest.raises(ClusterError, match=r"1 of 2 places are lost .* within 1 s \(train\.start_timeout_s\)"):
            wait_until_living(places, 1.0)
        fresh = nodes.add_node(**SIZE)
        wait_until_living(places, 120.0)
        node_id, _ = start_actor(Card, 1.0, 0.0, far).call(Card.numbers).wait(Deadline(240, "starting", "none"))
        assert node_id == fresh.node_id


def test_a_node_that_goes_takes_only_what_its_engine_had_not_finished(
    nodes: Cluster, policy: Path, tmp_path: Path
) -> None:
    # Long replies, so that no group ends before its node does: a worker outlives its raylet by a moment.
    rollout = {"kv_cache_gib": 0.1, "max_in_flight": 4, "max_reply_tokens": 1900, "num_workers": 2}
    config = config_of(nodes, policy, tmp_path, rollout=rollout, learner={"cpus": 0}, max_tokens=2048)
    with cluster(config, policy, store_bytes(config, policy)) as joined:
        places = joined.places.engines
        head: Any = nodes.head_node
        far = next(index for index, place in enumerate(places) if place.node_id != head.node_id)
        assert places[1 - far].node_id == head.node_id
        pool = WorkerPool(config, policy, places)
        try:
            pool.wait_until_ready()
            source = config.weights.publisher().publish(checkpoint_tensors(load_policy(policy), "float32"), 1)
            pool.load_weights(source)
            third = nodes.add_node(**SIZE)
            specs = [GroupSpec(f"0-{ordinal}", make_task(ordinal), 2, 1.0) for ordinal in range(4)]
            plays = [pool.play(0, specs[:2]), pool.play(1, specs[2:])]
            (lost,) = nodes.worker_nodes - {third}
            nodes.remove_node(lost, allow_graceful=False)
            groups = [group for play in plays for group in pool.collect(play, Deadline(240, "playing", "none"))]
            assert [group.group_id for group in groups] == ["0-0", "0-1", "0-2", "0-3"]
            assert all(rollout.outcome.counts for group in groups for rollout in group.rollouts)
            (note,) = [note for note in pool.notes() if "died" in note]
            assert note.startswith(f"worker {far} died and is replaced")
            assert places[far].node_id == third.node_id
            replies = [turn.reply for group in groups for rollout in group.rollouts for turn in rollout.turns]
            assert {int(each) for reply in replies for each in reply.columns["version"]} == {1}
        finally:
            pool.shutdown()
