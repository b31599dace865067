"""How does a large array reach the processes of a cluster? Through Ray's object store, with one copy on each node."""

import errno

import numpy as np
import ray
from ray.exceptions import ObjectStoreFullError, OutOfDiskError, RayError

from rl.cluster.address import ClusterError


class StoreFull(ClusterError):
    """The object store has no room on this node."""


class ObjectLost(ClusterError):
    """A stored array exists on no node any more, or the process that stored it has ended."""


def store(array: np.ndarray) -> object:
    """Store a copy of the array; it exists as long as some process holds the result, and this process lives.

    Raises `ClusterError` in a process that belongs to no cluster, and `OSError` if there is no room.
    """
    if not ray.is_initialized():  # Ray would start a cluster
        raise ClusterError("the object store needs a process of a Ray cluster; weights: shared_memory needs none")
    try:
        return put(array, f"{array.nbytes / 2**20:,.0f} MiB")
    except StoreFull as error:
        raise OSError(errno.ENOSPC, str(error)) from error


def put(value: object, what: str) -> object:
    """Store a value, told in words, in Ray's object store. Raises `StoreFull`."""
    try:
        return ray.put(value)
    except (ObjectStoreFullError, OutOfDiskError) as error:
        raise StoreFull(
            f"the object store has no room for {what}; raise ray.object_store_mib, or give the cluster's nodes a larger"
            f" store (ray start --object-store-memory): {error}"
        ) from error


def fetch(stored: object) -> np.ndarray:
    """The stored array, read-only: this node's copy, which is made at the first call on the node.

    The array keeps the copy alive. Raises `ObjectLost`.
    """
    try:
        return ray.get(stored)  # type: ignore[call-overload]
    except RayError as error:
        raise ObjectLost(f"{type(error).__name__}: {error}") from error
