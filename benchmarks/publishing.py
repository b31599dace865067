"""How long does a version of the weights take from the learner to all engines, by each transport?

    python -m benchmarks.publishing --out benchmarks/results/publishing.json     (about two minutes, two cores)

Random tensors are published by one process and verified by two or four others, the engines' side without vLLM: the time
ends with the last hash. The readers are on the publisher's node, or some on another logical node of this machine.
"""

import os

os.environ["RAY_AUTH_MODE"] = "disabled"  # a cluster of this machine's own, without a token

import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.report import write_report

SIZES = {"small": (84, 31_000), "large": (272, 992_000)}
"""Tensors and bytes of each: the quickstart's policy in float32 (2.6 MB), and SmolLM2-135M in bfloat16 (270 MB)."""
NUM_VERSIONS = 2
"""That a publisher keeps, as the learner does."""


class End:
    """One end of a transport in a process of its own."""

    def __init__(self, transport: str) -> None:
        from pydantic import TypeAdapter

        from rl.weights.transports import AnyTransport

        self._transport = TypeAdapter(AnyTransport).validate_python(transport)
        self._publisher = self._transport.publisher()
        self._sources: list[Any] = []

    def prepare(self, num_tensors: int, num_bytes: int) -> None:
        import torch

        torch.set_num_threads(1)
        self._tensors = [(f"layer {index}", torch.randn(num_bytes // 4)) for index in range(num_tensors)]

    def publish(self, version: int) -> Any:
        source = self._publisher.publish(self._tensors, version)
        self._sources.append(source)
        if len(self._sources) > NUM_VERSIONS:
            self._publisher.forget(self._sources.pop(0))
        return source

    def receive(self, source: Any) -> str:
        received = self._transport.receive(self._transport.fetched(source))
        assert received.tensors
        return received.hash

    def close(self) -> None:
        self._publisher.close()


def main(
    out: Annotated[Path, typer.Option(help="JSON file to write.")],
    short: Annotated[bool, typer.Option(help="The small size, twice; only to see that it runs.")] = False,
) -> None:
    sizes = {"small": SIZES["small"]} if short else SIZES
    raw = dict(measure(sizes, num_repeats=2 if short else 30))
    summary = {name: {"median": statistics.median(values), "best": min(values)} for name, values in raw.items()}
    write_report(out, summary, raw=raw)


def measure(sizes: dict[str, tuple[int, int]], num_repeats: int) -> Iterator[tuple[str, list[float]]]:
    """Milliseconds of each repetition, by size, transport and place; the first publication is not counted."""
    import ray
    from ray.cluster_utils import Cluster

    store = 2**20 * (2000 if "large" in sizes else 128)
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # so that no other process joins; sockets need a short path
    os.environ["RAY_TMPDIR"] = folder
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 4, "object_store_memory": store, "include_dashboard": False},
    )
    try:
        nodes = [cluster.head_node, cluster.add_node(num_cpus=4, object_store_memory=store)]
        ray.init(cluster.address, log_to_driver=False)
        here, other = (node.node_id for node in nodes)
        for name, (num_tensors, num_bytes) in sizes.items():
            for transport, where, places in (
                ("shared_memory", "one_node", [here, here]),
                ("object_store", "one_node", [here, here]),
                ("object_store", "two_nodes", [here, other]),
                ("object_store", "two_on_each_node", [here, here, other, other]),
            ):
                ends = started(transport, [here, *places])
                ray.get(ends[0].prepare.remote(num_tensors, num_bytes))
                figures = [publish(ends, version) for version in range(num_repeats + 1)]
                yield f"{name}_{transport}_{where}_ms", figures[1:]
                ray.get(ends[0].close.remote())
                for end in ends:
                    ray.kill(end)
    finally:
        ray.shutdown()
        cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def started(transport: str, nodes: Sequence[str]) -> list[Any]:
    """The publisher and the readers, each on its node."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    end: Any = ray.remote(End)
    where = [NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes]
    ends = [end.options(scheduling_strategy=strategy).remote(transport) for strategy in where]
    return ends


def publish(ends: Sequence[Any], version: int) -> float:
    """Milliseconds from the call of the learner to the last verified hash, as the driver sees them."""
    import ray

    publisher, *readers = ends
    started = time.perf_counter()
    source: Any = ray.get(publisher.publish.remote(version))
    hashes = ray.get([reader.receive.remote(source) for reader in readers])
    seconds = time.perf_counter() - started
    assert set(hashes) == {source.hash} and np.isfinite(seconds)
    return 1000 * seconds


if __name__ == "__main__":
    typer.run(main)
