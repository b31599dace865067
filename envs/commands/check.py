"""`python -m envs check`: is this environment sound?"""

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from envs.check import NUM_CLAUSES, CheckResult, check_environment
from envs.commands.output import write_text
from envs.registry import find

MARKS = {"passed": "[green]passed [/green]", "failed": "[red]failed [/red]"}
INDENT = 8
NUM_NAMES = 3
"""How many skipped checks are named for each reason."""


def print_checks(console: Console, env_id: str, options: dict[str, Any], num_seeds: int, report: Path | None) -> bool:
    """Run every check, print failures with their fixes, and return whether all checks passed."""
    if ":" not in env_id:
        find(env_id)
    with console.status(f"{NUM_CLAUSES} checks, {num_seeds} seeds"):
        results = check_environment(env_id, options, num_seeds)
    for result in results:
        if result.status == "skipped":
            continue
        console.print(f"{MARKS[result.status]} {result.name}", highlight=False)
        if result.status == "failed":
            told = (("", result.detail, "bold"), ("It asks: ", result.meaning, ""), ("To fix: ", result.remedy, ""))
            for label, text, style in told:
                console.print(Padding(Text(label + text, style), (0, 0, 0, INDENT)))
    _print_skipped(console, results)
    counts = Counter(result.status for result in results)
    console.print(f"{env_id}: {len(results)} checks, {counts['failed']} failed, {counts['skipped']} skipped")
    if report is not None:
        rows = [dataclasses.asdict(result) for result in results]
        write_text(report, json.dumps({"env_id": env_id, "options": options, "checks": rows}, indent=2) + "\n")
    return not counts["failed"]


def _print_skipped(console: Console, results: Sequence[CheckResult]) -> None:
    """One line for each reason; the report names all."""
    reasons: dict[str, list[str]] = {}
    for result in results:
        if result.status == "skipped":
            reasons.setdefault(result.detail, []).append(result.name)
    for reason, names in reasons.items():
        more = [f"{len(names) - NUM_NAMES} more"] if len(names) > NUM_NAMES else []
        listed = ", ".join([*names[:NUM_NAMES], *more])
        console.print(Text.assemble(("skipped", "yellow"), f" {len(names)}: {reason} ", (f"({listed})", "dim")))
