"""`python -m envs sandbox doctor`: which layers confine untrusted code here, and do they hold?"""

from rich.console import Console
from rich.progress import track

from envs.sandbox import LAYERS, LEVEL_VARIABLE, LEVELS, Level, Limits, SandboxError, minimum_level
from envs.sandbox.jail import Jail
from envs.sandbox.layers import landlock_version
from envs.sandbox.probes import PROBES, ProbeResult, run_probe, target


def examine_sandbox(console: Console) -> bool:
    """Print each level, whether it works here, and which probes escape. Returns whether the strongest level holds."""
    console.print(f"Landlock version {landlock_version() or 'none'}")
    strongest: Level | None = None
    holds = False
    for level in LEVELS:
        try:
            with Jail(level, Limits()):
                pass
        except SandboxError as error:
            console.print(f"[red]{level}[/red] does not work here: {error}")
            continue
        results = try_probes(console, level)
        escaped = [result for result in results if not result.held]
        strongest, holds = level, all(result.is_expected(level) for result in results)
        console.print(f"[green]{level}[/green]: {LAYERS[level]}", highlight=False)
        console.print(f"  {len(results) - len(escaped)} of {len(results)} probes held")
        for result in escaped:
            meant = "not held at this level" if result.is_expected(level) else "[red]MUST be held[/red]"
            console.print(f"  - {result.probe.name}: {meant}", highlight=False)
    minimum = minimum_level()
    if strongest is None or LEVELS.index(strongest) < LEVELS.index(minimum):
        console.print(f"[red]untrusted code does not run here[/red]: at least {minimum} is required ({LEVEL_VARIABLE})")
        return False
    console.print(f"untrusted code runs at level [bold]{strongest}[/bold]; at least {minimum} is required")
    return holds


def try_probes(console: Console, level: Level) -> list[ProbeResult]:
    """Run each probe with its own target, so that what one probe ends or fills does not affect the next."""
    results = []
    for probe in track(PROBES, f"probes, {level}", console=console, transient=True):
        with target() as aim:
            results.append(run_probe(probe, level, aim))
    return results
