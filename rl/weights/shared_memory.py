"""How are the weights of a policy version shared between processes of one machine?

As one flat file in shared memory: each tensor's bytes at a multiple of 64, then an index (JSON: version, and each
tensor's name, dtype, shape and offset), then the index's length in 8 bytes. The hash (xxh3, 64 bits) covers every byte.
"""

import atexit
import fcntl
import json
import mmap
import os
import shutil
import tempfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import torch
import xxhash

from rl.weights.source import WeightsError, WeightSource
from rl.weights.transport import Received

_ALIGNMENT = 64
_LENGTH_BYTES = 8
_CHUNK_BYTES = 1 << 20
"""Small enough that the hash reads what the copy has just brought into the cache."""
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
            digest = _write(file.fileno(), tensors, version)
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
    found = xxhash.xxh3_64_hexdigest(memory)
    if found != source.hash:
        raise WeightsError(
            f"the weights of version {source.version} at {path} hash to {found}, but {source.hash} was"
            f" published: the file ({len(memory):,} bytes) is damaged or cut off; publish the version again"
        )
    end = len(memory) - _LENGTH_BYTES
    index = json.loads(memory[end - int.from_bytes(memory[end:], "little") : end])
    if index["version"] != source.version:
        raise WeightsError(f"{path} holds version {index['version']}, not {source.version}")
    return Received([(entry[0], _view(memory, *entry[1:])) for entry in index["tensors"]], found)


def remove_weights(source: WeightSource) -> None:
    """Remove a published file, once every engine has acknowledged it or a newer one. Idempotent."""
    Path(str(source.place)).unlink(missing_ok=True)


def remove_all_weights() -> None:
    """Remove the folder of this process; for processes that are about to be killed and so will not clean up."""
    if _own_folder.cache_info().currsize:
        shutil.rmtree(_own_folder(), ignore_errors=True)
        _own_folder.cache_clear()


def _write(file: int, tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> str:
    """Write everything to the open file, tensor by tensor, and return the hash."""
    digest = xxhash.xxh3_64()

    def write(data: memoryview) -> None:
        for start in range(0, len(data), _CHUNK_BYTES):
            chunk = data[start : start + _CHUNK_BYTES]
            digest.update(chunk)
            while chunk:
                chunk = chunk[os.write(file, chunk) :]

    entries: dict[str, list[object]] = {}
    offset = 0
    for name, tensor in tensors:
        if name in entries or not tensor.numel():
            raise WeightsError(f"tensor {name} {'comes twice' if name in entries else 'is empty'}")
        entries[name] = [name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape), offset]
        write(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        padding = -tensor.nbytes % _ALIGNMENT
        write(memoryview(bytes(padding)))
        offset += tensor.nbytes + padding
    index = json.dumps({"version": version, "tensors": list(entries.values())}).encode()
    write(memoryview(index + len(index).to_bytes(_LENGTH_BYTES, "little")))
    return digest.hexdigest()


def _view(memory: mmap.mmap, dtype: str, shape: list[int], offset: int) -> torch.Tensor:
    count = torch.Size(shape).numel()
    return torch.frombuffer(memory, dtype=getattr(torch, dtype), count=count, offset=offset).view(shape)


@cache
def _own_folder() -> Path:
    """A new folder in shared memory, removed when this process ends; those of killed processes are removed here."""
    base = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path(tempfile.gettempdir())
    for folder in base.glob(f"{_FOLDER_PREFIX}*"):
        _remove_if_abandoned(folder)
    folder = Path(tempfile.mkdtemp(prefix=_FOLDER_PREFIX, dir=base))
    # The lock lasts as long as the process, and is seen from other containers too, unlike a process id.
    fcntl.flock(os.open(folder, os.O_RDONLY), fcntl.LOCK_SH)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _remove_if_abandoned(folder: Path) -> None:
    assert folder.name.startswith(_FOLDER_PREFIX), f"{folder} is not a folder of published weights"
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # gone, or another user's
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        pass  # its process lives
    finally:
        os.close(descriptor)
