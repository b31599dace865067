"""How are files of JSON lines read? One object per line; if the writer is killed, only the last can be incomplete."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from envs.errors import InputError

JsonObject = Mapping[str, Any]
"""The content of one line."""


class JsonLineError(InputError):
    """A line is not a JSON object, or lacks a required key."""


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects in a file that a run writes. An incomplete last line is skipped; a missing file has no objects.

    Raises `JsonLineError` with file and line if another line, or the file, cannot be read.
    """
    if path.is_file():
        yield from _objects(path, may_be_torn=True)


def read_rows(path: Path, *needed: str) -> list[dict[str, Any]]:
    """The objects in a data file that a user provides, each with the `needed` keys.

    Raises `JsonLineError` with file and line, also if the file cannot be read.
    """
    rows = []
    for number, row in enumerate(_objects(path, may_be_torn=False), start=1):
        missing = [key for key in needed if key not in row]
        if missing:
            raise JsonLineError(f"{path}, line {number} must have {' and '.join(missing)}")
        rows.append(row)
    return rows


def _objects(path: Path, *, may_be_torn: bool) -> Iterator[dict[str, Any]]:
    try:
        file = path.open("rb")
    except OSError as error:
        raise JsonLineError(f"{path} cannot be read: {error.strerror or error}") from error
    with file:
        for number, text in enumerate(file, start=1):
            try:
                line = json.loads(text.decode())
            except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
                if may_be_torn and not text.endswith(b"\n"):
                    return
                raise JsonLineError(
                    f"{path}, line {number} is not JSON: {error}. Delete that line to read the others"
                ) from None
            if not isinstance(line, dict):
                raise JsonLineError(f"{path}, line {number} must be an object, got {text.decode().strip()!r:.100}")
            yield line
