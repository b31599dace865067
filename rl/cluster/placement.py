"""On which node do learner and engines run? On one, if the transport of their weights leaves no node."""

from collections.abc import Mapping, Sequence
from typing import Any

from rl.config.experiment import ExperimentConfig

Node = Mapping[str, Any]
"""What Ray says of a node."""


class PlacementError(RuntimeError):
    """The cluster has no place where learner and engines can reach each other."""


def shared_node(nodes: Sequence[Node], driver_node: str, config: ExperimentConfig) -> str | None:
    """The id of the node that every actor of the run must be placed on, or None if each may be anywhere.

    `nodes` is what `ray.nodes()` gives. The driver's node comes first, for the policy's folder and the checkpoints lie
    there. Also a cluster of one node is held to it: a worker that is restarted later must not land on a node that has
    joined meanwhile. Raises `PlacementError` if no node is big enough.
    """
    alive = [node for node in nodes if node["Alive"]]
    ids = {str(node["NodeID"]) for node in alive}
    if len(ids) > 1 and config.weights.reaches(ids):
        return None
    cpus, gpus = config.reserved
    fitting = [str(node["NodeID"]) for node in alive if _has(node, "CPU") >= cpus and _has(node, "GPU") >= gpus]
    if not fitting:
        sizes = ", ".join(f"{_has(node, 'CPU'):g} CPUs and {_has(node, 'GPU'):g} GPUs" for node in alive)
        raise PlacementError(
            f"weights.transport {config.weights.name} needs the learner and all engines on one node. They reserve"
            f" {cpus:g} CPUs and {gpus:g} GPUs, and the cluster's nodes have {sizes}; lower learner.cpus, learner.gpus,"
            " rollout.cpus_per_worker, rollout.gpus_per_worker or rollout.num_workers until one node holds them, or add"
            " a bigger node"
        )
    return driver_node if driver_node in fitting else min(fitting)


def _has(node: Node, resource: str) -> float:
    return float(node["Resources"].get(resource, 0.0))
