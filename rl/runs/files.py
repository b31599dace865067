"""How are a run's files written so that a kill at any moment leaves them whole?

Lines of JSON are appended and flushed one by one: a kill can only tear the last one, which readers
leave out (`envs.json_lines`). Everything else is written beside its place and renamed into it.
"""

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

from envs.json_lines import read_lines


def write_atomically(path: Path, text: str) -> None:
    """Replace the file by `text`, whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def sync_folder(path: Path) -> None:
    """Make renames in this folder survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def append_line(file: TextIO, line: Mapping[str, Any]) -> None:
    """One JSON object on a line, flushed. Numbers that JSON does not have (NaN, infinities) become null."""
    try:
        text = json.dumps(line, allow_nan=False, default=str)
    except ValueError:
        text = json.dumps(_finite(line), default=str)
    file.write(text + "\n")
    file.flush()


def keep_lines(path: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Rewrite a file of JSON lines without those that are not to be kept, and without a torn last one."""
    if path.is_file():
        kept = [json.dumps(line) + "\n" for line in read_lines(path) if keep(line)]
        write_atomically(path, "".join(kept))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
