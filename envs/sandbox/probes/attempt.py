"""What is a probe, and did it escape? Its code prints `ESCAPED` if it succeeded, or leaves traces."""

from collections.abc import Callable
from dataclasses import dataclass

from envs.sandbox.limits import LEVELS, Level, Limits, SandboxResult
from envs.sandbox.probes.target import Target
from envs.sandbox.run import run_program

PROBE_LIMITS = Limits(cpu_s=1, wall_s=2.0, memory_bytes=256 * 1024**2)


@dataclass(frozen=True, slots=True)
class Probe:
    """One attempt. `level` is the weakest at which it must fail, `statuses` are those that count as held, and `run`
    runs the code."""

    name: str
    code: str
    level: Level = "restricted"
    statuses: tuple[str, ...] = ("ok", "error", "denied", "killed", "memory")
    run: Callable[[str, Level], SandboxResult] = lambda code, level: run_program(code, "", PROBE_LIMITS, level)


@dataclass(frozen=True, slots=True)
class ProbeResult:
    probe: Probe
    held: bool
    detail: str

    def is_expected(self, level: Level) -> bool:
        return self.held or LEVELS.index(level) < LEVELS.index(self.probe.level)


def run_probe(probe: Probe, level: Level, aim: Target) -> ProbeResult:
    """Try one probe at a level. Raises `SandboxError` when the sandbox itself fails."""
    result = probe.run(aim.fill(probe.code), level)
    held = result.status in probe.statuses and "ESCAPED" not in result.stdout + result.detail and aim.is_untouched
    return ProbeResult(probe, held, f"{result.status} {result.detail} {result.stdout[:200]}".strip())
