"""Trains an experiment as a user does, in a process of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.test_train import START_TIMEOUT_S


def trained(experiment: str, folder: Path, environment: Mapping[str, str] = os.environ) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl` after `rl train` of this YAML, whose `run_dir` must be `folder/run`."""
    path = folder / "experiment.yaml"
    path.write_text(experiment)
    command = [sys.executable, "-m", "rl", "train", str(path)]
    limit_s = 3 * START_TIMEOUT_S
    done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False, env=dict(environment))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


def steps_of(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in lines if line.get("kind") == "train"]
