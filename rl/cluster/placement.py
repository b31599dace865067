"""On which node are learner and engines placed? All on one node, unless the transport of weights reaches several."""

from collections.abc import Mapping, Sequence
from typing import Any

from rl.config.experiment import ExperimentConfig

Node = Mapping[str, Any]
"""Ray's description of a node."""


class PlacementError(RuntimeError):
    """The cluster has no place where learner and engines can reach each other."""


def shared_node(nodes: Sequence[Node], driver_node: str, config: ExperimentConfig) -> str | None:
    """The id of the node that every actor of the run must be placed on, or None if each may be anywhere.

    `nodes` is the result of `ray.nodes()`. The driver's node is preferred, because it has the policy's folder and the
    checkpoints. The node is also fixed in a cluster of one node: a worker that is restarted later must not be placed on
    a node that has joined meanwhile. Raises `PlacementError` if no node is large enough.
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
            " rollout.cpus_per_worker, rollout.gpus_per_worker or rollout.num_workers until they fit on one node, or"
            " add a larger node"
        )
    return driver_node if driver_node in fitting else min(fitting)


def _has(node: Node, resource: str) -> float:
    return float(node["Resources"].get(resource, 0.0))
