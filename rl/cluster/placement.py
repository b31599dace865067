"""Which places does a run ask of the Ray cluster, and do the nodes have them?

A rank of the learner, an engine, or a pair of them gets a bundle of resources, and a bundle lies on one node. Bundles
are asked for in placement groups, which Ray grants as a whole.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from rl.config.experiment import ExperimentConfig


class PlacementError(RuntimeError):
    """The cluster's nodes have no place for the run."""


@dataclass(frozen=True, slots=True)
class Bundle:
    cpus: float
    gpus: float

    def __add__(self, other: "Bundle") -> "Bundle":
        return Bundle(self.cpus + other.cpus, self.gpus + other.gpus)

    def times(self, num: int) -> "Bundle":
        return Bundle(num * self.cpus, num * self.gpus)

    @property
    def resources(self) -> dict[str, float]:
        """As Ray writes them, which takes no bundle of nothing."""
        asked = {"CPU": self.cpus, "GPU": self.gpus}
        return {name: num for name, num in asked.items() if num} or {"memory": 1}

    def __str__(self) -> str:
        return f"{self.cpus:g} CPUs" + (f" and {self.gpus:g} GPUs" if self.gpus else "")


@dataclass(frozen=True, slots=True)
class BundleGroup:
    """A placement group. Ray's strategies: PACK and SPREAD are wishes, STRICT_PACK is one node."""

    strategy: str
    bundles: tuple[Bundle, ...]


Slot = tuple[int, int]
"""A group's and a bundle's number."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What a run asks for."""

    groups: tuple[BundleGroup, ...]
    ranks: tuple[Slot, ...]
    """Of each rank of the learner."""
    engines: tuple[Slot, ...]
    """Of each worker."""
    words: str
    teachers: tuple[Slot, ...] = ()
    """Of each engine of a teacher."""
    judges: tuple[Slot, ...] = ()


@dataclass(frozen=True, slots=True)
class Node:
    """A node of the cluster and all that it has, whoever uses it."""

    address: str
    has: Bundle
    store_bytes: float
    """Of its object store."""
    node_id: str = ""

    def holds(self, bundle: Bundle) -> bool:
        return bundle.cpus <= self.has.cpus + _EPSILON and bundle.gpus <= self.has.gpus + _EPSILON

    def __str__(self) -> str:
        return f"{self.address}: {self.has}"


_EPSILON = 1e-6


def nodes_of(described: Sequence[Mapping[str, Any]]) -> list[Node]:
    """The living nodes in the result of `ray.nodes()`."""
    found = []
    for node in described:
        if node["Alive"]:
            has = node["Resources"]
            bundle = Bundle(has.get("CPU", 0.0), has.get("GPU", 0.0))
            store = has.get("object_store_memory", 0.0)
            found.append(Node(node["NodeManagerAddress"], bundle, store, node["NodeID"]))
    return found


def layout(config: ExperimentConfig) -> Layout:
    """The placement groups of a run.

    Ranks are packed, because they exchange gradients; engines are spread. A transport of weights that reaches one node
    only asks for all bundles on one node.
    """
    learner, rollout = config.learner, config.rollout
    rank, engine = Bundle(learner.cpus, learner.gpus), Bundle(rollout.cpus_per_worker, rollout.gpus_per_worker)
    num_before = rollout.num_workers + config.num_teacher_engines
    num_engines = num_before + config.num_judges
    ranks, engines = learner.num_ranks * (rank,), num_engines * (engine,)
    words = f"{_counted(len(ranks), 'learner rank', rank)} and {_counted(len(engines), 'engine', engine)}"
    if config.teachers:
        words += f", of which {config.num_teacher_engines} of teachers"
    if config.judge:
        words += ", of which 1 of the judge"
    pack = "PACK" if config.weights.reaches_all_nodes else "STRICT_PACK"
    first = tuple((0, number) for number in range(len(ranks)))
    if config.ray.placement == "colocated":
        pairs = BundleGroup(pack, len(ranks) * (rank + engine,))
        return Layout((pairs,), first, first, words + ", in pairs on one node")
    if config.weights.reaches_all_nodes:
        # Without ranks, or without engines (`rl.apart`), there is one group.
        groups = tuple(group for group in (BundleGroup(pack, ranks), BundleGroup("SPREAD", engines)) if group.bundles)
        second = tuple((len(groups) - 1, number) for number in range(num_engines))
    else:
        groups = (BundleGroup(pack, ranks + engines),)
        second = tuple((0, len(ranks) + number) for number in range(num_engines))
        words += f", all on one node (weights.transport {config.weights.name} reaches no other)"
    cuts = (0, rollout.num_workers, num_before, num_engines)
    workers, teachers, judges = (second[begin:end] for begin, end in pairwise(cuts))
    return Layout(groups, first, workers, words, teachers, judges)


def check_nodes(asked: Layout, nodes: Sequence[Node], store_bytes: int) -> list[Node]:
    """The nodes that may get a bundle. Raises `PlacementError` if the nodes cannot hold all bundles, even when nobody
    else uses them, or if the object store of one that may get a bundle is smaller than `store_bytes`.
    """
    bundles = [bundle for group in asked.groups for bundle in group.bundles]
    if any(group.strategy == "STRICT_PACK" for group in asked.groups):
        bundles = [sum(bundles, start=Bundle(0.0, 0.0))]
    if not _can_hold(nodes, Counter(bundles)):
        raise PlacementError(
            f"the run asks for {asked.words}. The nodes cannot hold that ({'; '.join(map(str, nodes))}): a rank or an"
            " engine lies on one node. Lower learner.cpus, learner.gpus, rollout.cpus_per_worker,"
            " rollout.gpus_per_worker, learner.num_ranks or rollout.num_workers, or add nodes"
        )
    usable = [node for node in nodes if any(node.holds(bundle) for bundle in bundles)]
    if small := [node for node in usable if node.store_bytes < store_bytes]:
        raise PlacementError(
            f"the run needs {_mib(store_bytes)} of the object store of a node, for published weights and a step's"
            f" samples, and {small[0].address} has {_mib(small[0].store_bytes)}: start Ray there with a larger one"
            " (ray start --object-store-memory=BYTES)"
        )
    return usable


def _can_hold(nodes: Sequence[Node], wanted: Mapping[Bundle, int]) -> bool:
    """Whether bundles of at most two kinds can be dealt to the nodes. Exact, but for how fractions share cards."""
    (first, num_first), *others = wanted.items()
    second, num_second = others[0] if others else (Bundle(0.0, 0.0), 0)
    most = {0: 0}  # by the number of the first kind that is placed: the most of the second kind beside them
    for node in nodes:
        after: dict[int, int] = {}
        for placed, beside in most.items():
            for here in range(min(num_first - placed, _num_fitting(node.has, first, num_first)) + 1):
                taken = first.times(here)
                left = Bundle(node.has.cpus - taken.cpus, node.has.gpus - taken.gpus)
                held = min(num_second, beside + _num_fitting(left, second, num_second))
                after[placed + here] = max(after.get(placed + here, 0), held)
        most = after
    return most.get(num_first, -1) >= num_second


def _num_fitting(space: Bundle, bundle: Bundle, most: int) -> int:
    pairs = ((space.cpus, bundle.cpus), (space.gpus, bundle.gpus))
    return min([most, *(int(has / each + _EPSILON) for has, each in pairs if each)])


def _counted(num: int, name: str, bundle: Bundle) -> str:
    return f"1 {name} with {bundle}" if num == 1 else f"{num} {name}s with {bundle} each"


def _mib(num_bytes: float) -> str:
    return f"{num_bytes / 2**20:,.0f} MiB"
