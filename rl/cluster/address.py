"""Which Ray cluster does a run join, and can one be started on this machine?

`ray.address` decides. `auto` uses the variable RAY_ADDRESS, which Ray's own tools set and read; without it, the cluster
that was last started on this machine, if it still answers. A named cluster that does not answer is an error: a run for
a cluster must not silently start on this machine's CPUs.
"""

import datetime
import os
import socket
import sys
from pathlib import Path

from ray._common.utils import get_default_ray_temp_dir
from ray._private.accelerators import get_accelerator_manager_for_resource
from ray._private.utils import read_ray_address

SOCKET_PATH_BYTES = 103 if sys.platform == "darwin" else 107
"""Maximum length of a socket's path on this system."""


class ClusterError(RuntimeError):
    """The cluster missed a deadline, cannot be joined or started, or is too small for the run."""


def cluster_address(asked: str) -> str | None:
    """The address to join, `host:port` or `ray://host:port`; None where a cluster is to be started here.

    `asked` is `ray.address`. Raises `ClusterError` when a cluster is named, there or by RAY_ADDRESS, and none answers.
    """
    key = "ray.address"
    named = os.environ.get("RAY_ADDRESS", "").strip()
    if asked == "auto" and named:
        key, asked = "RAY_ADDRESS", named
    if asked == "local":
        return None
    if asked == "auto":
        known = read_ray_address()
        if known and answers(
            known
        ):  # a head that was killed leaves its address behind, and Ray would try it for minutes
            return known
        if key == "ray.address":
            return None
    elif answers(asked):
        return asked
    raise ClusterError(
        f"{key}: no Ray cluster answers at {asked!r}; start one (ray start --head), or use ray.address=local for one on"
        " this machine"
    )


def answers(address: str) -> bool:
    """Whether something listens at `host:port` or `ray://host:port`; addresses of other kinds are left to Ray."""
    scheme, _, place = address.rpartition("://")
    if scheme not in ("", "ray"):
        return True
    host, _, port = place.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=2.0):
            return True
    except (OSError, ValueError, OverflowError):
        return False


def check_local_start() -> None:
    """Raise `ClusterError` when Ray could not put its files and sockets where its environment says."""
    folder = Path(get_default_ray_temp_dir()).absolute()
    now = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S_%f")
    longest = folder / f"session_{now}_{os.getpid()}" / "sockets" / "plasma_store"
    num_bytes = len(os.fsencode(longest))
    fix = "set RAY_TMPDIR to another folder, such as /tmp"
    if num_bytes > SOCKET_PATH_BYTES:
        raise ClusterError(
            f"Ray's folder {folder} (RAY_TMPDIR, else TMPDIR) is too long: a socket in it would have a path of"
            f" {num_bytes} bytes, and the system takes {SOCKET_PATH_BYTES}; {fix}"
        )
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise ClusterError(f"Ray's folder {folder} (RAY_TMPDIR, else TMPDIR) cannot be written; {fix}")


def num_local_gpus() -> int:
    """GPUs that Ray would find on this machine, as many as this process may see."""
    manager = get_accelerator_manager_for_resource("GPU")
    assert manager is not None
    num = manager.get_current_node_num_accelerators()
    visible = manager.get_current_process_visible_accelerator_ids()
    return num if visible is None else min(num, len(visible))
