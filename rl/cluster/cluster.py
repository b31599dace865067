"""Which Ray cluster does a run use, and is it large enough? A run joins a cluster, or starts and stops a local one.

`rl.cluster.address` decides which cluster is joined, if any.
"""

import contextlib
import functools
import gc
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray._private import services

from rl.cluster.address import ClusterError, check_local_start, cluster_address, num_local_gpus
from rl.cluster.placement import Bundle, Layout, Node, PlacementError, check_nodes, layout, nodes_of
from rl.cluster.places import num_cores, room
from rl.cluster.reserve import Places, reserve
from rl.cluster.shared_memory import check_local_room, store_size
from rl.cluster.visible import check_visible, mark_in
from rl.cluster.watch import last_words, watched
from rl.config.experiment import ExperimentConfig

logger = logging.getLogger(__name__)
ENDED = (
    "this process was killed, or Ray ended it because the raylet beside it died: logs/raylet.err and logs/raylet.out of"
    " Ray's files ({files}) may say why"
)


@dataclass(frozen=True, slots=True)
class Joined:
    """The cluster that a run uses."""

    words: str
    """Its address, nodes and resources, and where the run's actors are, in words."""
    places: Places
    """Reserved for the run's actors."""


@contextlib.contextmanager
def cluster(config: ExperimentConfig, policy_path: Path | None = None, store_bytes: int = 0) -> Iterator[Joined]:
    """Join the running cluster, or start a local one and stop it at the end, and reserve the run's places.

    `store_bytes` is what the run needs of each node's object store. If the cluster's head stops answering inside the
    block, the run is requested to stop, as by a signal. Raises `ClusterError` if there is no such cluster, if it is too
    small for the run, or if one of its nodes lacks the policy's folder, the run's folder or an environment.
    """
    address = cluster_address(config.ray.address)
    if address is None:
        check_local_room(config.ray, store_bytes)
        files = join(
            "local",
            num_cpus=_local_cpus(config),
            object_store_memory=store_size(config.ray, store_bytes),
            include_dashboard=False,
            # Ray would start a worker a CPU, which no actor of a run can use: each has variables of its own.
            _system_config={"prestart_worker_first_driver": False},
        )
    else:
        files = join(address)
    try:
        asked = layout(config)
        nodes = _checked_nodes(asked, nodes_of(ray.nodes()), store_bytes)
        words = _words(address)
        if address is not None and policy_path is not None:
            with mark_in(config.run_dir) as mark:
                folders = [policy_path, config.run_dir, *_served_beside(config)]
                check_visible(nodes, folders, list(config.environments), config.train.start_timeout_s, mark)
        with watched(ray.get_runtime_context().gcs_address), last_words(ENDED.format(files=files)):
            places = reserve(asked, config.train.start_timeout_s)
            yield Joined(f"{words}; {places.words()}" if address else words, places)
    finally:
        ray.shutdown()


def try_cluster(asked: str) -> str:
    """Join or start the cluster that `ray.address` means, and leave it; its words. Raises `ClusterError`."""
    address = cluster_address(asked)
    if address is None:
        check_local_start()
        join("local", num_cpus=1, object_store_memory=80 * 2**20, include_dashboard=False)
    else:
        join(address)
    try:
        return _words(address)
    finally:
        ray.shutdown()


def check_cluster(config: ExperimentConfig, store_bytes: int = 0) -> None:
    """Raise `ClusterError` before the supervised stage for errors that would otherwise appear only after it.

    Such errors are a cluster that does not answer, is too small or does not see the policy and the environments, and a
    machine where Ray cannot start or that lacks GPUs or memory. `store_bytes` is as in `cluster`.
    """
    address, asked = cluster_address(config.ray.address), layout(config)
    if address is None:
        check_local_start()
        check_local_room(config.ray, store_bytes)
        has = Bundle(_local_cpus(config), num_local_gpus())
        _checked_nodes(asked, [Node("this machine", has, store_size(config.ray, store_bytes))], store_bytes)
        return
    join(address)
    try:
        nodes = _checked_nodes(asked, nodes_of(ray.nodes()), store_bytes)
        folders = [parent for parent in config.run_dir.parents if parent.is_dir()][:1]  # it does not exist yet
        folders += [*([config.policy.path] if config.policy.path is not None else []), *_served_beside(config)]
        check_visible(nodes, folders, list(config.environments), config.train.start_timeout_s)
    finally:
        ray.shutdown()


def _served_beside(config: ExperimentConfig) -> list[Path]:
    """Folders of the policies of other engines, which may run on any node."""
    return [*(teacher.path for teacher in config.teachers.values()), *([config.judge.path] if config.judge else [])]


def _words(address: str | None) -> str:
    if address is None:
        return f"started Ray on this machine ({num_cores():g} cores): {room()}"
    return f"joined the Ray cluster at {address}: {room()} ({'; '.join(map(str, nodes_of(ray.nodes())))})"


def _local_cpus(config: ExperimentConfig) -> int:
    return config.ray.local_cpus or max(1, math.ceil(config.reserved[0]))


def _checked_nodes(asked: Layout, nodes: Sequence[Node], store_bytes: int) -> list[Node]:
    try:
        return check_nodes(asked, nodes, store_bytes)
    except PlacementError as error:
        raise ClusterError(str(error)) from error


def join(address: str, **settings: Any) -> str:
    """Connect this process to the cluster at this address; `local` starts one. Returns where Ray's files are.

    Raises `ClusterError`.
    """
    # Ray numbers the actors of each cluster alike: a handle of an earlier cluster of this process, when it is
    # collected, would end the actor of the same number here.
    gc.collect()
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
    return session


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
