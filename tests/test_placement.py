"""Which placement groups a run asks for, and whether the cluster's nodes can hold them."""

from typing import Any

import pytest
from pydantic import ValidationError

from rl.cluster.placement import Bundle, Layout, Node, PlacementError, check_nodes, layout, nodes_of
from tests.makers import make_config

RANK, ENGINE = Bundle(2, 1), Bundle(3, 2)
GIB = 2**30


def layout_of(num_ranks: int = 2, num_workers: int = 3, weights: str = "object_store", **ray: Any) -> Layout:
    config = make_config(
        weights=weights,
        ray=ray,
        learner={"num_ranks": num_ranks, "cpus": 2, "gpus": 1},
        rollout={"num_workers": num_workers, "cpus_per_worker": 3, "gpus_per_worker": 2},
    )
    return layout(config)


def node(cpus: float, gpus: float, name: str = "10.0.0.1", store_bytes: float = GIB) -> Node:
    return Node(name, Bundle(cpus, gpus), store_bytes)


def test_ranks_are_packed_and_engines_are_spread() -> None:
    asked = layout_of()
    assert [(group.strategy, group.bundles) for group in asked.groups] == [
        ("PACK", (RANK,) * 2),
        ("SPREAD", (ENGINE,) * 3),
    ]
    assert asked.ranks == ((0, 0), (0, 1)) and asked.engines == ((1, 0), (1, 1), (1, 2))
    assert "2 learner ranks with 2 CPUs and 1 GPUs each and 3 engines with 3 CPUs and 2 GPUs each" in asked.words


def test_a_transport_of_one_node_asks_for_all_bundles_there() -> None:
    asked = layout_of(weights="shared_memory")
    assert [(group.strategy, group.bundles) for group in asked.groups] == [("STRICT_PACK", 2 * (RANK,) + 3 * (ENGINE,))]
    assert asked.ranks == ((0, 0), (0, 1)) and asked.engines == ((0, 2), (0, 3), (0, 4))
    assert check_nodes(asked, [node(12, 8), node(13, 8)], 0) == [node(13, 8)]
    with pytest.raises(PlacementError, match=r"all on one node \(weights.transport shared_memory"):
        check_nodes(asked, [node(12, 8), node(12, 8)], 0)


@pytest.mark.parametrize(("weights", "strategy"), [("object_store", "PACK"), ("shared_memory", "STRICT_PACK")])
def test_a_rank_and_an_engine_share_a_bundle(weights: str, strategy: str) -> None:
    learner, rollout = {"num_ranks": 2, "gpus": 0.5}, {"num_workers": 2, "cpus_per_worker": 2, "gpus_per_worker": 0.5}
    asked = layout(make_config(weights=weights, ray={"placement": "colocated"}, learner=learner, rollout=rollout))
    assert [(group.strategy, group.bundles) for group in asked.groups] == [(strategy, (Bundle(3, 1),) * 2)]
    assert asked.ranks == asked.engines == ((0, 0), (0, 1))


@pytest.mark.parametrize(
    ("learner", "rollout", "words"),
    [
        ({"num_ranks": 2}, {"num_workers": 3}, "learner.num_ranks is 2 and rollout.num_workers 3"),
        ({"gpus": 1}, {"gpus_per_worker": 1}, "learner.gpus is 1 and rollout.gpus_per_worker 1"),
        ({"gpus": 0.5}, {}, "learner.gpus is 0.5 and rollout.gpus_per_worker 0"),
    ],
)
def test_pairs_that_cannot_share_are_refused(learner: dict[str, Any], rollout: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        make_config(ray={"placement": "colocated"}, learner=learner, rollout=rollout)
    make_config(learner=learner, rollout=rollout)


@pytest.mark.parametrize(
    "nodes",
    [
        [node(13, 8)],
        [node(4, 2), node(9, 6)],
        [node(5, 3), node(5, 3), node(3, 2)],
        [node(2, 1), node(2, 1), node(3, 2), node(6, 4)],
    ],
)
def test_nodes_that_can_be_filled_are_accepted(nodes: list[Node]) -> None:
    assert check_nodes(layout_of(), nodes, GIB) == nodes


@pytest.mark.parametrize(
    "nodes",
    [
        [node(12, 8)],
        [node(64, 1)] * 8,  # GPUs enough in all, but no node has two for an engine
        [node(4, 8), node(4, 8), node(5, 8)],  # 13 CPUs: a rank and an engine fit on one node only
        [],
    ],
)
def test_totals_that_no_node_can_use_are_refused(nodes: list[Node]) -> None:
    with pytest.raises(
        PlacementError, match=r"cannot hold that .*a rank or an engine lies on one node\. Lower learner"
    ):
        check_nodes(layout_of(), nodes, 0)


def test_what_the_nodes_have_is_told() -> None:
    with pytest.raises(PlacementError, match=r"\(10\.0\.0\.1: 8 CPUs and 2 GPUs; 10\.0\.0\.2: 4 CPUs\)"):
        check_nodes(layout_of(), [node(8, 2), node(4, 0, "10.0.0.2")], 0)


def test_only_nodes_that_may_get_a_bundle_count_and_their_object_stores_must_be_large_enough() -> None:
    nodes = [node(13, 8), node(1, 0, "10.0.0.2", store_bytes=0)]
    assert check_nodes(layout_of(), nodes, GIB) == nodes[:1]
    with pytest.raises(PlacementError, match=r"needs 1,025 MiB of .* and 10\.0\.0\.1 has 1,024 MiB: start Ray there"):
        check_nodes(layout_of(), nodes, GIB + 2**20)


def test_a_bundle_of_nothing_asks_for_a_byte() -> None:
    assert Bundle(0, 0).resources == {"memory": 1}
    assert Bundle(0.5, 0).resources == {"CPU": 0.5}
    assert Bundle(1, 2).resources == {"CPU": 1, "GPU": 2}
    idle = layout(make_config(learner={"cpus": 0}, rollout={"cpus_per_worker": 0}))
    assert check_nodes(idle, [node(0, 0)], 0)


def test_nodes_are_read_from_what_ray_says() -> None:
    has = {"CPU": 4.0, "object_store_memory": 7.0, "memory": 1e9}
    described = [
        {"NodeID": "a", "Alive": True, "NodeManagerAddress": "10.0.0.1", "Resources": has},
        {"NodeID": "b", "Alive": False, "NodeManagerAddress": "10.0.0.2", "Resources": {}},
    ]
    assert nodes_of(described) == [Node("10.0.0.1", Bundle(4.0, 0.0), 7.0, "a")]
