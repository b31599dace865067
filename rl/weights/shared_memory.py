"""How are the weights of a policy version shared between processes of one machine? As one file in shared memory.

`rl.weights.flat` defines its bytes.
"""

import mmap
import os
import shutil
import tempfile
from collections.abc import Iterable
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch

from rl.cluster.own_folder import own_folder
from rl.weights.flat import read_flat, write_flat
from rl.weights.source import WeightsError, WeightSource
from rl.weights.transport import Received

_FOLDER_PREFIX = "polygym-weights-"


class SharedMemoryPublisher:
    """The learner's end: one file per version, in a folder that is removed with this process."""

    def publish(self, tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> WeightSource:
        return write_weights(tensors, version)

    def forget(self, source: WeightSource) -> None:
        remove_weights(source)

    def close(self) -> None:
        remove_all_weights()


def write_weights(
    tensors: Iterable[tuple[str, torch.Tensor]], version: int, folder: Path | None = None
) -> WeightSource:
    """Publish `tensors` (names and layout of the checkpoint) as `version`; the bytes are copied once.

    The file appears under its name only when it is complete. `folder` should lie in memory; without one, a folder in
    /dev/shm is used that is removed with this process. Raises `WeightsError` for a duplicate name or an empty tensor,
    and `OSError` when there is no room.
    """
    folder = folder or _own_folder()
    path = folder / f"version-{version:08d}.weights"
    unfinished = path.with_suffix(".unfinished")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with unfinished.open("wb", buffering=0) as file:
            digest = write_flat(partial(_write, file.fileno()), tensors, version)
        unfinished.replace(path)
    except OSError as error:
        raise OSError(
            error.errno,
            f"cannot write the weights of version {version} to {folder} ({error.strerror}); give the machine or"
            " container more shared memory (docker: --shm-size)",
        ) from error
    finally:
        unfinished.unlink(missing_ok=True)
    return WeightSource(version, str(path), digest)


def read_weights(source: WeightSource) -> Received:
    """Map a published file, without copying. The tensors keep the memory alive, also after `remove_weights`.

    Raises `WeightsError` when the file is missing or cut off, holds another version, or its bytes do not hash to
    `source.hash`.
    """
    path = str(source.place)
    try:
        with open(path, "rb") as file:
            # A private mapping: torch wants writable memory, and nothing written could reach the file.
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except (OSError, ValueError) as error:  # ValueError: the file is empty
        raise WeightsError(f"cannot map the weights of version {source.version} at {path}: {error}") from error
    return read_flat(np.frombuffer(memory, np.uint8), source, path)


def remove_weights(source: WeightSource) -> None:
    """Remove a published file, once every engine has acknowledged it or a newer one. Idempotent."""
    Path(str(source.place)).unlink(missing_ok=True)


def remove_all_weights() -> None:
    """Remove the folder of this process; for processes that are about to be killed and so will not clean up."""
    if _own_folder.cache_info().currsize:
        shutil.rmtree(_own_folder(), ignore_errors=True)
        _own_folder.cache_clear()


def _write(file: int, data: memoryview) -> None:
    while data:
        data = data[os.write(file, data) :]


@cache
def _own_folder() -> Path:
    """A new folder in shared memory."""
    shared = Path("/dev/shm")
    return own_folder(shared if shared.is_dir() else Path(tempfile.gettempdir()), _FOLDER_PREFIX)
