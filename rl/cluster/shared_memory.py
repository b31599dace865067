"""Is there room in shared memory for the weights that a run publishes? Containers often have only 64 MiB."""

import shutil
import tempfile
from pathlib import Path

from rl.cluster.address import ClusterError

NUM_VERSIONS = 3
"""Published versions that exist at the same time: two that engines may still read, and one that is being written."""


def check_shared_memory(num_bytes: int) -> None:
    """Raise `ClusterError` when shared memory has no room for so many bytes."""
    folder = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path(tempfile.gettempdir())
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        raise ClusterError(
            f"{folder} has {free / 2**20:,.0f} MiB free, and the published weights need"
            f" {num_bytes / 2**20:,.0f} MiB; give the machine or container more shared memory (docker: --shm-size)"
        )
