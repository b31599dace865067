"""How are the places of a run's actors reserved? By Ray's placement groups, which end with the run.

If a node is lost, Ray looks for another place for its bundles, so a new actor in a bundle waits for that.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray._private.state import available_resources_per_node
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rl.cluster.address import ClusterError
from rl.cluster.placement import Bundle, Layout, Slot, nodes_of
from rl.stop import POLL_S, raise_if_requested


@dataclass(frozen=True, slots=True)
class Place:
    """A bundle in which actors can be started."""

    group: PlacementGroup
    bundle: int

    @property
    def node_id(self) -> str:
        """The node on which the bundle was first placed."""
        return placement_group_table(self.group)["bundles_to_node_id"][self.bundle]


@dataclass(frozen=True, slots=True)
class Places:
    """Of the actors of one run."""

    learner: Sequence[Place]
    engines: Sequence[Place]
    teachers: Sequence[Place] = ()
    judges: Sequence[Place] = ()

    def words(self) -> str:
        """The addresses of the nodes that were chosen."""
        addresses = {node.node_id: node.address for node in nodes_of(ray.nodes())}

        def told(places: Sequence[Place]) -> str:
            return ", ".join(addresses.get(place.node_id, place.node_id) for place in places)

        beside = {"teachers": self.teachers, "judge": self.judges}
        others = "".join(f"; {name} on {told(places)}" for name, places in beside.items() if places)
        return f"learner on {told(self.learner)}; engines on {told(self.engines)}{others}"


def reserve(asked: Layout, timeout_s: float) -> Places:
    """Ask for the placement groups and wait until Ray grants all of them. Raises `ClusterError` at the deadline."""
    groups = [
        placement_group([bundle.resources for bundle in group.bundles], strategy=group.strategy)
        for group in asked.groups
    ]
    deadline = time.monotonic() + timeout_s
    for group in groups:
        while not group.wait(POLL_S):
            raise_if_requested()
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"no place was found within {timeout_s:g} s (train.start_timeout_s) for {asked.words}. Free on the"
                    f" nodes: {_free()}. Wait for other jobs to end, or lower what the run reserves"
                )

    def place(slot: Slot) -> Place:
        return Place(groups[slot[0]], slot[1])

    return Places(*(list(map(place, slots)) for slots in (asked.ranks, asked.engines, asked.teachers, asked.judges)))


def wait_until_living(places: Sequence[Place], timeout_s: float) -> None:
    """Wait until the node of each place answers. Raises `ClusterError` at the deadline.

    Ray needs up to half a minute to notice that a node is lost, and only then looks for other places. An actor that is
    started in the meantime dies with the lost node; a task is started again until it has run.
    """
    look: Any = ray.remote(num_cpus=0, max_retries=-1)(_nothing)  # pyright: ignore[reportCallIssue]
    strategies = [PlacementGroupSchedulingStrategy(place.group, place.bundle) for place in places]
    left = [look.options(scheduling_strategy=strategy).remote() for strategy in strategies]
    deadline = time.monotonic() + timeout_s
    while left:
        raise_if_requested()
        _, left = ray.wait(left, num_returns=len(left), timeout=POLL_S)
        if left and time.monotonic() > deadline:
            raise ClusterError(
                f"{len(left)} of {len(places)} places are lost with their node, and no others were found within"
                f" {timeout_s:g} s (train.start_timeout_s). Free on the nodes: {_free()}. Bring a node back, or lower"
                " what the run reserves; then the same command with --resume"
            )


def _nothing() -> None: ...


def _free() -> str:
    free = available_resources_per_node()
    parts = []
    for node in nodes_of(ray.nodes()):
        left = free.get(node.node_id, {})
        parts.append(f"{node.address}: {Bundle(left.get('CPU', 0.0), left.get('GPU', 0.0))} of {node.has}")
    return "; ".join(parts)
