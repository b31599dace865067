"""What do trackers take from the run folder? The id by which they know the run again, and its configuration."""

import uuid
from pathlib import Path
from typing import Any

import yaml

from rl.runs.files import write_atomically


def tracking_id(run_dir: Path) -> str:
    """The id of the run in every tracker: made once, and kept in RUN/tracking_id over every resume.

    Raises `StorageError` if it cannot be written.
    """
    file = run_dir / "tracking_id"
    if not file.is_file():
        write_atomically(file, uuid.uuid4().hex[:12] + "\n")
    return file.read_text(encoding="utf-8").strip()


def configuration(run_dir: Path) -> dict[str, Any]:
    """The tree of RUN/config.yaml, the resolved configuration of this start of the run; empty without one."""
    if not (run_dir / "config.yaml").is_file():  # a supervised stage alone
        return {}
    return yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8"))
