"""Where does code that a policy wrote run? In its own processes, confined by several independent layers, without root.

`run_function`, `run_program`, `run_tests` and `PythonSession` run it at the strongest level that works on this machine.
Every result contains its level (`LAYERS` says what each consists of). Nothing runs below the level of `require_level`;
processes that are started later have the same bound, through the environment variable `POLYGYM_SANDBOX_LEVEL`. A
failure of the sandbox itself raises `SandboxError` and is never caused by the policy. `python -m envs sandbox doctor`
tests it.

What stays visible: at `restricted`, which of the host's files and processes exist and how large they are (`stat`,
`chdir`; Landlock restricts contents and lists only), and at every level the properties of the machine (`uname`,
`sysinfo`).
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
