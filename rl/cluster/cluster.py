"""Which Ray cluster does a run use, and is it large enough? Joining one, or starting and stopping one here."""

import contextlib
import logging
import math
import os
import socket
from collections.abc import Iterator

import ray
from ray._private.utils import read_ray_address

from rl.cluster.actors import ClusterError
from rl.config.experiment import ExperimentConfig


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
