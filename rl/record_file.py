"""How is a record written whose loss must not stop the run? JSON lines; after a failure of the disk, no more."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path

logger = logging.getLogger(__name__)


class RecordFile:
    """A new file, of which each line is written when it is whole. Without a path nothing is written."""

    def __init__(self, path: Path | None = None) -> None:
        self._path, self._file = path, None
        if path is not None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._file = path.open("w", encoding="utf-8", buffering=1)
            except OSError as error:
                self._stop(error)

    def write(self, line: Mapping[str, object]) -> None:
        if self._file is None:
            return
        try:
            self._file.write(json.dumps(line, separators=(",", ":")) + "\n")
        except OSError as error:
            self._stop(error)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _stop(self, error: OSError) -> None:
        self._file = None
        logger.warning("the run goes on, but cannot be replayed: %s cannot be written: %s", self._path, error)
