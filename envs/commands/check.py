"""`python -m envs check`: is this environment sound?"""

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console

from envs.check import CHECKS, check_environment
from envs.commands.output import write_text
from envs.registry import find

MARKS = {"passed": "[green]passed [/green]", "failed": "[red]failed [/red]", "skipped": "[yellow]skipped[/yellow]"}


def print_checks(console: Console, env_id: str, options: dict[str, Any], num_seeds: int, report: Path | None) -> bool:
    """Run every check, print failures with their fixes, and return whether all checks passed."""
    if ":" not in env_id:
        find(env_id)
    with console.status(f"{len(CHECKS)} checks, {num_seeds} seeds"):
        results = check_environment(env_id, options, num_seeds)
    told: dict[str, str] = {}
    for result in results:
        console.print(f"{MARKS[result.status]} {result.name}", highlight=False)
        if result.status == "failed" and told.setdefault(result.detail, result.name) != result.name:
            console.print(f"        the same as: {told[result.detail]}", markup=False)
        elif result.status == "failed":
            console.print(f"        {result.detail}", style="bold", markup=False)
            console.print(f"        It asks: {result.meaning}", markup=False)
            console.print(f"        To fix: {result.remedy}", markup=False)
        elif result.status == "skipped":
            console.print(f"        {result.detail}", style="dim", markup=False)
    counts = Counter(result.status for result in results)
    console.print(f"{env_id}: {len(results)} checks, {counts['failed']} failed, {counts['skipped']} skipped")
    if report is not None:
        rows = [dataclasses.asdict(result) for result in results]
        write_text(report, json.dumps({"env_id": env_id, "options": options, "checks": rows}, indent=2) + "\n")
    return not counts["failed"]
