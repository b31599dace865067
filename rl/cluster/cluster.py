"""Where do actors run? Ray start and stop, placement, and waiting with deadlines."""

import contextlib
import logging
import math
import os
import socket
import time
from collections.abc import Iterator
from typing import Any

import ray
from ray._private.utils import read_ray_address
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from rl.config.experiment import ExperimentConfig
from rl.stop import POLL_S, raise_if_requested

THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
"""One thread a process: tiny models run several times slower on two (measured)."""

ActorDied = RayActorError


class ClusterError(RuntimeError):
    """The cluster could not do what was asked in time, or cannot hold the run."""


@contextlib.contextmanager
def cluster(config: ExperimentConfig) -> Iterator[None]:
    """Join the running cluster, or start a local one and stop it in the end.

    Raises `ClusterError` when the cluster is too small for what the configuration reserves.
    """
    cpus, gpus = reserved(config)
    joined = config.ray.address != "local" and _running_cluster(config)
    if not joined:
        ray.init(
            address="local",
            num_cpus=config.ray.local_cpus or max(1, math.ceil(cpus)),
            object_store_memory=config.ray.object_store_mib * 2**20,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    try:
        _check_size(cpus, gpus)
        yield
    finally:
        ray.shutdown()


def check_cluster(config: ExperimentConfig) -> None:
    """Raise `ClusterError` now for a running cluster that would be too small later, after the supervised stage."""
    if config.ray.address != "local" and _running_cluster(config):
        try:
            _check_size(*reserved(config))
        finally:
            ray.shutdown()


def _running_cluster(config: ExperimentConfig) -> bool:
    """Join `ray.address`. With `auto`, no running cluster is no error."""
    address = config.ray.address
    if address == "auto":
        known = os.environ.get("RAY_ADDRESS") or read_ray_address()
        # A head that was killed leaves its address behind, and Ray would try it for minutes.
        if not known or not _answers(known):
            return False
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except ConnectionError as error:
        message = f"ray.address: no Ray cluster answers at {address!r} ({error}); start one or use local"
        raise ClusterError(message) from error
    return True


def _answers(address: str) -> bool:
    """Whether something listens at `host:port`."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=2.0):
            return True
    except (OSError, ValueError):
        return False


def reserved(config: ExperimentConfig) -> tuple[float, float]:
    """CPUs and GPUs that the learner and the workers reserve."""
    rollout, learner = config.rollout, config.learner
    return (
        learner.cpus + rollout.num_workers * rollout.cpus_per_worker,
        learner.gpus + rollout.num_workers * rollout.gpus_per_worker,
    )


def _check_size(cpus: float, gpus: float) -> None:
    total = ray.cluster_resources()
    for name, need, key in (("CPU", cpus, "cpus"), ("GPU", gpus, "gpus")):
        if need > total.get(name, 0.0):
            raise ClusterError(
                f"the learner and the workers reserve {need:g} {name}s and the cluster has {total.get(name, 0.0):g};"
                f" lower learner.{key}, rollout.{key}_per_worker or rollout.num_workers"
            )


def start_actor(actor_class: Any, cpus: float, gpus: float, *arguments: Any) -> Any:
    """Start an actor in a process of its own, with one compute thread."""
    return actor_class.options(num_cpus=cpus, num_gpus=gpus, runtime_env={"env_vars": THREADS}).remote(*arguments)


def wait_for(references: Any, timeout_s: float, what: str, key: str) -> Any:
    """The result of a remote call, or of several.

    Raises `ClusterError` at the deadline, naming the configuration key that sets it; `StopRequested` when the
    run is asked to stop; `ActorDied` when the actor's process died; the original error of the remote code otherwise.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        raise_if_requested()
        try:
            return ray.get(references, timeout=min(POLL_S, max(0.0, deadline - time.monotonic())))
        except GetTimeoutError:
            if time.monotonic() >= deadline:
                raise ClusterError(f"{what} took longer than {timeout_s:g} s; {key} sets the deadline") from None
        except RayTaskError as error:
            raise error.as_instanceof_cause() from None


def stop_actor(actor: Any, timeout_s: float = 10.0) -> None:
    """Let the actor clean up, then end its process."""
    with contextlib.suppress(RayError):
        ray.get(actor.shutdown.remote(), timeout=timeout_s)
    ray.kill(actor)
