"""Is there room in this machine's memory for what a run shares between its processes? Containers often have 64 MiB."""

import shutil
import tempfile
from pathlib import Path

from ray._common.utils import get_system_memory

from rl.cluster.address import ClusterError
from rl.config.cluster import RayConfig

NUM_VERSIONS = 3
"""Published versions that exist at the same time: two that engines may still read, and one that is being written."""
MIB = 2**20
LEAST_STORE_BYTES = 128 * MIB


def check_shared_memory(num_bytes: int) -> None:
    """Raise `ClusterError` when shared memory has no room for so many bytes."""
    folder = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path(tempfile.gettempdir())
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        raise ClusterError(
            f"{folder} has {free / MIB:,.0f} MiB free, and published weights and samples need {num_bytes / MIB:,.0f}"
            " MiB; give the machine or container more shared memory (docker: --shm-size)"
        )


def store_size(config: RayConfig, needed: int) -> int:
    """Bytes of the object store of a cluster that is started here; `needed` are those that the run needs of it."""
    asked = config.object_store_mib
    return max(LEAST_STORE_BYTES, needed) if asked is None else asked * MIB


def check_local_room(config: RayConfig, needed: int) -> None:
    """Raise `ClusterError` when an object store for so many bytes has no room here, or `object_store_mib` is less."""
    size = store_size(config, needed)
    if size < needed:
        raise ClusterError(
            f"ray.object_store_mib is {size / MIB:,.0f}, and published weights and samples need {needed / MIB:,.0f};"
            " raise it, or remove the key"
        )
    if size > (memory := get_system_memory()):
        raise ClusterError(
            f"an object store of {size / MIB:,.0f} MiB, for published weights and a step's samples, does not fit into"
            f" this machine's memory ({memory / MIB:,.0f} MiB); lower ray.object_store_mib, train.num_prompts,"
            " train.group_size or policy.max_tokens, or join a larger cluster (ray.address)"
        )
    check_shared_memory(needed)
