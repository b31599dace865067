"""How does a command write its output file?"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


class OutputError(RuntimeError):
    """A file that cannot be written."""


def write_text(path: Path, text: str) -> None:
    """Write the file, and create its folder. Raises `OutputError`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object per line. Raises `OutputError`."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
