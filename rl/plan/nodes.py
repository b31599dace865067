"""Do a run's processes fit on nodes with so many GPUs each, and which processes are on which node?"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

from rl.config.experiment import ExperimentConfig

LEARNER, ENGINE, JUDGE = "learner", "engine", "judge"


class Nodes(NamedTuple):
    """Machines that are all alike."""

    num: int
    gpus: int
    """Of each."""


class _Node:
    def __init__(self, num_gpus: int) -> None:
        self.processes: Counter[str] = Counter()
        self._free = num_gpus * [1.0]

    def takes(self, name: str, gpus: float) -> bool:
        """Whether this process had room: whole cards, or a share of one."""
        num = max(1, int(gpus))
        share = gpus / num
        cards = [card for card, free in enumerate(self._free) if free >= share - 1e-9][:num]
        if gpus and len(cards) < num:
            return False
        for card in cards:
            self._free[card] -= share
        self.processes[name] += 1
        return True


def others_of(config: ExperimentConfig) -> dict[str, int]:
    """Numbers of the engines that sample no rollouts, by name. Each reserves what an engine does."""
    teachers = {f"teacher {name}": teacher.num_engines for name, teacher in config.teachers.items()}
    return teachers | ({JUDGE: 1} if config.judge is not None else {})


def lay_out(config: ExperimentConfig, num_gpus: int) -> list[Counter[str]]:
    """Numbers of learner's ranks, engines and others on each node with so many GPUs, on as many nodes as it takes.

    The processes with most GPUs come first, each on the first node that has room. No process may need more GPUs than a
    node has.
    """
    learner, rollout = config.learner, config.rollout
    engines = {ENGINE: rollout.num_workers, **others_of(config)}
    processes = [(name, rollout.gpus_per_worker) for name, num in engines.items() for _ in range(num)]
    processes += [(LEARNER, learner.gpus)] * learner.num_ranks
    nodes: list[_Node] = []
    for name, gpus in sorted(processes, key=lambda process: process[1], reverse=True):
        if not any(node.takes(name, gpus) for node in nodes):
            nodes.append(_Node(num_gpus))
            assert nodes[-1].takes(name, gpus), f"{name} needs more GPUs than a node has"
    return [node.processes for node in nodes]


def node_problems(config: ExperimentConfig, nodes: Nodes) -> Iterator[tuple[str, list[str]]]:
    """Why the run has no place on these nodes, and the keys that help."""
    if too_large := larger_than_a_node(config, nodes):
        for key, gpus in too_large.items():
            wrong = f"{key} is {gpus:g}, and a node has {nodes.gpus} GPUs: no engine and no rank spans nodes"
            yield wrong, [f"{key}, to {nodes.gpus} or less"]
        return
    num = len(lay_out(config, nodes.gpus))
    if num > nodes.num:
        wrong = f"the run's processes need {num} nodes with {nodes.gpus} GPUs each, and there are {nodes.num}"
        yield wrong, list(_fewer_processes(config, nodes))
    if num > 1 and not config.weights.reaches_all_nodes:
        wrong = (
            f"the run's processes are on {num} nodes, and weights.transport {config.weights.name} publishes only to"
            " engines on the learner's node"
        )
        yield wrong, ["weights.transport, to one that reaches other nodes"]


def larger_than_a_node(config: ExperimentConfig, nodes: Nodes) -> dict[str, float]:
    """The keys that give one process more GPUs than a node has, with their values."""
    sizes = {"rollout.gpus_per_worker": config.rollout.gpus_per_worker, "learner.gpus": config.learner.gpus}
    return {key: gpus for key, gpus in sizes.items() if gpus > nodes.gpus}


def _fewer_processes(config: ExperimentConfig, nodes: Nodes) -> Iterator[str]:
    """The largest number of ranks, or of engines, with which the run fits."""
    for section, key in (("learner", "num_ranks"), ("rollout", "num_workers")):
        now = getattr(getattr(config, section), key)

        def is_too_much(num: int, section: str = section, key: str = key) -> bool:
            changed: Any = getattr(config, section).model_copy(update={key: num})
            return len(lay_out(config.model_copy(update={section: changed}), nodes.gpus)) > nodes.num

        if most := bisect_left(range(1, now), True, key=is_too_much):
            yield f"{section}.{key}, to {most} or less"
