"""How is code confined, within which limits, and how did it end?"""

from dataclasses import dataclass
from typing import Any, Literal

from envs.errors import InputError

Level = Literal["process", "restricted", "isolated"]
LEVELS: tuple[Level, ...] = ("process", "restricted", "isolated")
"""From the weakest to the strongest."""
LAYERS: dict[Level, str] = {
    "process": "resource limits, an empty environment, closed descriptors, no capabilities, nobody instead of root",
    "restricted": "Landlock (reads the standard library, writes nothing, signals nobody), a seccomp filter (what Python"
    " needs: no processes, few threads, no network), resource limits, an empty environment, closed descriptors, no"
    " capabilities",
    "isolated": "all of `restricted`; user, PID, network, mount, IPC and UTS namespaces; no file of the host but the"
    " standard library; a scratch folder in memory",
}

Status = Literal["ok", "error", "timeout", "memory", "output_limit", "killed", "denied"]
"""`denied`: ended because a layer refused something. `killed`: by a signal that no limit explains."""


class SandboxError(RuntimeError):
    """The sandbox itself failed, such as to start a process. The policy never causes this."""


class LevelError(SandboxError, InputError):
    """The required level is none, or this machine does not have it."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one jail, over all of its requests. The wall deadline counts from the start of the code."""

    cpu_s: int = 2
    wall_s: float = 5.0
    memory_bytes: int = 512 * 1024**2
    output_bytes: int = 65_536
    """For stdout, stderr and the values, each."""
    file_bytes: int = 8 * 1024**2
    """All files in the scratch folder together. Below `isolated` there is no folder, and nothing can be written."""
    start_s: float = 15.0
    """How long a jail may take to be ready, on a busy machine; longer is a failure of the sandbox."""


@dataclass(frozen=True, slots=True)
class SandboxResult:
    """How a run ended. `value` is the computed value; None unless `status` is `ok`."""

    status: Status
    level: Level
    value: Any = None
    detail: str = ""
    """What happened, if `status` is not `ok`."""
    stdout: str = ""
    stderr: str = ""
    cpu_s: float = 0.0
    max_rss_bytes: int = 0
