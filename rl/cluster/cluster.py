"""Which Ray cluster does a run use, and is it large enough? A run joins a cluster, or starts and stops a local one.

`rl.cluster.address` decides which cluster is joined, if any.
"""

import contextlib
import functools
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray._private import services

from rl.cluster.address import ClusterError, check_local_start, cluster_address, num_local_gpus
from rl.cluster.placement import PlacementError, shared_node
from rl.cluster.places import num_cores, room
from rl.cluster.watch import watched
from rl.config.experiment import ExperimentConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Joined:
    """The cluster that a run uses."""

    words: str
    """Its address and resources, in words."""
    node: str | None
    """The node that every actor of the run must be started on; None if each may be anywhere."""


@contextlib.contextmanager
def cluster(config: ExperimentConfig) -> Iterator[Joined]:
    """Join the running cluster, or start a local one and stop it at the end.

    If the cluster's head stops answering inside the block, the run is requested to stop, as by a signal. Raises
    `ClusterError` if there is no such cluster, or if it is too small for the run; if one node must hold all actors, at
    least one node must be large enough.
    """
    address = cluster_address(config.ray.address)
    if address is None:
        _init(
            "local",
            num_cpus=config.ray.local_cpus or max(1, math.ceil(config.reserved[0])),
            object_store_memory=config.ray.object_store_mib * 2**20,
            include_dashboard=False,
        )
    else:
        _init(address)
    try:
        node = _node_for_all(config)
        with watched(ray.get_runtime_context().gcs_address):
            yield Joined(_words(address), node)
    finally:
        ray.shutdown()


def try_cluster(asked: str) -> str:
    """Join or start the cluster that `ray.address` means, and leave it; its words. Raises `ClusterError`."""
    address = cluster_address(asked)
    if address is None:
        check_local_start()
        _init("local", num_cpus=1, object_store_memory=80 * 2**20, include_dashboard=False)
    else:
        _init(address)
    try:
        return _words(address)
    finally:
        ray.shutdown()


def check_cluster(config: ExperimentConfig) -> None:
    """Raise `ClusterError` before the supervised stage for errors that would otherwise appear only after it.

    Such errors are a cluster that does not answer or is too small, and a machine where Ray cannot start or that lacks
    GPUs.
    """
    address = cluster_address(config.ray.address)
    if address is None:
        check_local_start()
        cpus, gpus = config.reserved
        _check_size(cpus, gpus, {"CPU": config.ray.local_cpus or math.ceil(cpus), "GPU": num_local_gpus()})
        return
    _init(address)
    try:
        _node_for_all(config)
    finally:
        ray.shutdown()


def _words(address: str | None) -> str:
    where = (
        f"joined the Ray cluster at {address}" if address else f"started Ray on this machine ({num_cores():g} cores)"
    )
    return f"{where}: {room()}"


def _node_for_all(config: ExperimentConfig) -> str | None:
    _check_size(*config.reserved, ray.cluster_resources())
    try:
        return shared_node(ray.nodes(), ray.get_runtime_context().get_node_id(), config)
    except PlacementError as error:
        raise ClusterError(str(error)) from error


def _init(address: str, **settings: Any) -> None:
    try:
        with in_own_sessions():
            context = ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **settings)
    except Exception as error:  # Ray raises what its parts raise, from ConnectionError to bare Exception
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
        if address == "local":
            raise ClusterError(f"Ray cannot be started here: {reason}") from error
        raise ClusterError(
            f"something answers at {address!r}, and it cannot be joined as a Ray cluster: {reason}; use the head's Ray"
            " version and its RAY_AUTH_MODE, or ray.address=local"
        ) from error
    session = getattr(context, "address_info", {}).get("session_dir", "on the cluster's nodes")
    logger.info("Ray's files, which hold what actors print: %s", session)


@contextlib.contextmanager
def in_own_sessions() -> Iterator[None]:
    """Inside the block, Ray starts its processes in sessions of their own.

    A signal to the driver's process group (Ctrl-C, `timeout`) then reaches the driver alone, and the actors live until
    it has written a checkpoint. They still end with the driver, however that ends: the kernel kills Ray's own
    processes, and the actors notice. Ray has no option for it, only for the end with the driver.
    """
    popen = services.ConsolePopen
    services.ConsolePopen = functools.partial(popen, start_new_session=True)  # type: ignore[misc]
    try:
        yield
    finally:
        services.ConsolePopen = popen


def _check_size(cpus: float, gpus: float, total: Mapping[str, float]) -> None:
    for name, need, key in (("CPU", cpus, "cpus"), ("GPU", gpus, "gpus")):
        if need > total.get(name, 0.0):
            raise ClusterError(
                f"the learner and the workers reserve {need:g} {name}s and the cluster has {total.get(name, 0.0):g};"
                f" lower learner.{key}, rollout.{key}_per_worker or rollout.num_workers"
            )
