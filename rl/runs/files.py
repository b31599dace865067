"""How are a run's files written atomically, so that a kill at any moment leaves them whole?

JSON lines are appended and flushed one by one. A kill can damage only the last line, which readers ignore
(`envs.json_lines`). Every other file is written under another name and renamed into place. A full disk or a folder
without write permission raises `StorageError`, which names path and fix.
"""

import contextlib
import errno
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TextIO

from envs.json_lines import JsonObject, read_lines

OTHER_PLACE = "give a run_dir on another disk"
FIXES = {
    errno.ENOSPC: f"free some space there, or {OTHER_PLACE}; then go on with --resume",
    errno.EDQUOT: f"free some of the quota, or {OTHER_PLACE}; then go on with --resume",
    errno.EFBIG: f"raise the limit on the size of files (ulimit -f), or {OTHER_PLACE}",
    errno.EACCES: "give this user the right to write there, or choose another run_dir",
    errno.EPERM: "give this user the right to write there, or choose another run_dir",
    errno.EROFS: "mount it for writing, or choose another run_dir",
    errno.EEXIST: "a file or a link to nothing has that name; choose another run_dir",
    errno.ENOENT: "a folder above it is gone; choose another run_dir",
    errno.ENOTDIR: "a part of the path is a file; choose another run_dir",
    errno.ENAMETOOLONG: "choose a run_dir with a shorter path",
}
RUST_ERRNO = re.compile(r"\(os error (\d+)\)")


class StorageError(RuntimeError):
    """A file of the run cannot be written; the text names the file, the reason and the fix."""


@contextlib.contextmanager
def storing(path: Path) -> Iterator[None]:
    """Raise `StorageError` for a failure of the disk or of the file system inside the block, which writes `path`."""
    try:
        yield
    except Exception as error:
        number = _error_number(error, path)
        if number is None:
            raise
        fix = FIXES.get(number, f"see to the disk, or {OTHER_PLACE}")
        raise StorageError(f"{path} cannot be written: {os.strerror(number)}\n    fix: {fix}") from error


def _error_number(error: BaseException, path: Path) -> int | None:
    """The errno of a storage failure; None for another error.

    safetensors and torch report a full disk as errors of their own types: one with the number, one as "unexpected pos"
    of its writer of archives (inline_container.cc).
    """
    error = getattr(error, "cause", None) or error  # Ray wraps what an actor raises
    if isinstance(error, OSError) and not isinstance(error, ConnectionError | TimeoutError):
        return error.errno
    if found := RUST_ERRNO.search(str(error)):
        return int(found[1])
    if "inline_container" in str(error):
        return errno.ENOSPC if _is_full(path) else errno.EIO
    return None


def _is_full(path: Path) -> bool:
    place = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    return shutil.disk_usage(place).free < 1 << 20


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[TextIO]:
    """A file that replaces `path` when the block ends, whole or, if the block raises, not at all.

    Raises `StorageError`; whoever writes into the file does so inside `storing`.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with storing(path):
            file = temporary.open("w", encoding="utf-8")
        with file:
            yield file
            with storing(path):
                sync(file)
        with storing(path):
            temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def write_atomically(path: Path, text: str) -> None:
    """Replace the file by `text`, whole or not at all. Raises `StorageError`."""
    with storing(path), replacing(path) as file:
        file.write(text)


def sync(file: TextIO) -> None:
    """Sync what was written to the disk, so that it survives a power cut."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Make renames in this folder survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a folder, file or link as far as possible: network file systems keep open files under another name."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def append_line(file: TextIO, line: JsonObject) -> None:
    """One JSON object on a line, flushed. Numbers that JSON does not have (NaN, infinities) become null."""
    try:
        text = json.dumps(line, allow_nan=False, default=str)
    except ValueError:
        text = json.dumps(_finite(line), default=str)
    file.write(text + "\n")
    file.flush()


def keep_lines(path: Path, keep: Callable[[JsonObject], bool]) -> None:
    """Rewrite a file of JSON lines without those that are not to be kept, and without a torn last one."""
    if path.is_file():
        kept = [json.dumps(line) + "\n" for line in read_lines(path) if keep(line)]
        write_atomically(path, "".join(kept))


def _finite(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
