"""Where learner and engines may be placed, from what Ray says of the cluster's nodes."""

from collections.abc import Collection
from typing import Any, Literal

import pytest

from rl.cluster.placement import PlacementError, shared_node
from rl.config.experiment import ExperimentConfig
from rl.weights.transport import Transport
from rl.weights.transports import TRANSPORTS
from tests.makers import make_config

HERE = "driver"


def node(node_id: str, cpus: float, gpus: float = 0.0, alive: bool = True) -> dict[str, Any]:
    resources = {"CPU": cpus, "memory": 1e9, **({"GPU": gpus} if gpus else {})}
    return {"NodeID": node_id, "Alive": alive, "Resources": resources}


def config(weights: str = "shared_memory") -> ExperimentConfig:
    """Reserves 8 CPUs and 3 GPUs."""
    return make_config(
        weights=weights,
        learner={"cpus": 2, "gpus": 1},
        rollout={"num_workers": 2, "cpus_per_worker": 3, "gpus_per_worker": 1},
    )


def test_shared_memory_takes_a_node_that_holds_all_actors() -> None:
    nodes = [node(HERE, 4), node("small", 8, 2), node("big", 16, 4), node("dead", 64, 8, alive=False)]
    assert shared_node(nodes, HERE, config()) == "big"


def test_the_drivers_node_is_preferred_where_it_is_big_enough() -> None:
    assert shared_node([node("big", 64, 8), node(HERE, 8, 3)], HERE, config()) == HERE


def test_a_cluster_of_one_node_is_held_to_it() -> None:
    assert shared_node([node(HERE, 8, 3)], HERE, config()) == HERE


def test_two_nodes_that_hold_the_run_only_together_are_refused_with_their_sizes() -> None:
    with pytest.raises(PlacementError) as caught:
        shared_node([node(HERE, 8, 2), node("other", 4, 2)], HERE, config())
    for words in (
        "weights.transport shared_memory needs the learner and all engines on one node",
        "reserve 8 CPUs and 3 GPUs",
        "8 CPUs and 2 GPUs, 4 CPUs and 2 GPUs",
        "rollout.num_workers",
    ):
        assert words in str(caught.value)


def test_a_transport_that_reaches_all_nodes_leaves_the_placement_to_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    class Network(Transport):
        transport: Literal["network"] = "network"

        def reaches(self, nodes: Collection[str]) -> bool:
            return set(nodes) <= {HERE, "other"}

    monkeypatch.setitem(TRANSPORTS, "network", Network)
    assert shared_node([node(HERE, 4), node("other", 4, 3)], HERE, config("network")) is None
    with pytest.raises(PlacementError, match=r"weights\.transport network"):
        shared_node([node(HERE, 4), node("other", 4, 3), node("third", 4)], HERE, config("network"))
