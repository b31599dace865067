"""Where code that a policy wrote runs: in processes of its own, held by several independent layers, without root.

`run_function`, `run_program`, `run_tests` and `PythonSession` run it at the strongest level that works on this machine;
every result says which (`LAYERS` tells what each consists of). Below `require_level` nothing runs at all; processes
that are started later have the same bound, through the environment variable `POLYGYM_SANDBOX_LEVEL`. A failure of the
sandbox itself raises `SandboxError` and is never the policy's doing. `python -m envs sandbox doctor` tries it out.

What stays visible: at `restricted`, which of the host's files and processes exist and how large they are (`stat`,
`chdir`; Landlock holds contents and lists only), and the numbers of the machine (`uname`, `sysinfo`) at every level.
"""

from envs.sandbox.limits import LAYERS, LEVELS, Level, Limits, SandboxError, SandboxResult, Status
from envs.sandbox.run import (
    LEVEL_VARIABLE,
    PythonSession,
    level_here,
    minimum_level,
    require_level,
    run_function,
    run_program,
    run_tests,
)

__all__ = [
    "LAYERS",
    "LEVELS",
    "LEVEL_VARIABLE",
    "Level",
    "Limits",
    "PythonSession",
    "SandboxError",
    "SandboxResult",
    "Status",
    "level_here",
    "minimum_level",
    "require_level",
    "run_function",
    "run_program",
    "run_tests",
]
