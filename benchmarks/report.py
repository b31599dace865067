"""How does a benchmark hand over its figures? As a JSON file with a summary, which is also printed."""

import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer


def write_report(out: Path, summary: Mapping[str, Any], **details: Any) -> None:
    """Write the summary, the machine and the details to `out`, whose folder is made if it is missing."""
    report = {"summary": summary, "machine": machine(), **details}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=2) + "\n")
    typer.echo(json.dumps(summary, indent=2))


def machine() -> dict[str, Any]:
    """What figures depend on. The load average is that of the last minute; on an idle machine it is the benchmark's."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
    return {"cpu": model, "cores": sorted(os.sched_getaffinity(0)), "load_average": os.getloadavg()[0]}
