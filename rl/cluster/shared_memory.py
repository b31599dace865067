"""Is there room in shared memory for the weights that a run publishes? Containers often have only 64 MiB."""

import json
import shutil
import tempfile
from math import prod
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
            f"{folder} has {free / 2**20:,.0f} MiB free, and {NUM_VERSIONS} versions of the policy's weights need"
            f" {num_bytes / 2**20:,.0f} MiB; give the machine or container more shared memory (docker: --shm-size)"
        )


def published_bytes(policy: Path, bytes_per_number: int) -> int:
    """Bytes of shared memory that publishing the policy of this folder takes; `bytes_per_number` is 4 for float32.

    The numbers are counted in the headers of safetensors files, whatever type they are saved in. 0 for a folder without
    such files.
    """
    num = sum(
        prod(tensor["shape"])
        for file in policy.glob("*.safetensors")
        for name, tensor in _header(file).items()
        if name != "__metadata__"
    )
    return NUM_VERSIONS * num * bytes_per_number


def _header(file: Path) -> dict[str, dict[str, list[int]]]:
    """The index at the file's beginning: its length in 8 bytes, then JSON; empty for a file that is damaged."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        try:
            return json.loads(opened.read(min(length, file.stat().st_size)))
        except ValueError:
            return {}
