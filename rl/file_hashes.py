"""Which files does a written folder hold, and what are the size and the hash of each?

The process that wrote a file tells them, once the file is on the disk; who reads it later compares.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import xxhash

NUM_THREADS = 8
"""Files that are read at the same time: reading and hashing leave Python's lock free."""
T = TypeVar("T")
R = TypeVar("R")


class WrittenFile(NamedTuple):
    """What a file holds, by the process that wrote it."""

    size: int
    """In bytes."""
    xxh3: str
    """64 bits, as hexadecimal digits."""


def files_in(folder: Path) -> list[Path]:
    """All files except those that a network file system keeps for removed, still open files: they will disappear."""
    return sorted(entry for entry in folder.rglob("*") if entry.is_file() and not entry.name.startswith(".nfs"))


def sync_and_hash(folder: Path, files: Iterable[Path]) -> dict[str, WrittenFile]:
    """Sync these files of the folder to the disk and hash them; by their names relative to the folder."""
    listed = list(files)
    return dict(zip((str(file.relative_to(folder)) for file in listed), in_threads(_written, listed), strict=True))


def in_threads(work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """The results of `work`, in the order of the items, of which a bounded number is worked on at the same time."""
    with ThreadPoolExecutor(NUM_THREADS) as threads:
        yield from threads.map(work, items)


def file_hash(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, xxhash.xxh3_64).hexdigest()


def _written(file: Path) -> WrittenFile:
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
        digest = hashlib.file_digest(opened, xxhash.xxh3_64).hexdigest()
        return WrittenFile(os.fstat(opened.fileno()).st_size, digest)
