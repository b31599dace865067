"""Where code that a policy wrote runs: in processes of its own, held by several independent layers, without root.

`run_function`, `run_program`, `run_tests` and `PythonSession` run it at the strongest level that works on this machine;
every result says which (`LAYERS` tells what each consists of). Below `require_level` nothing runs at all. A failure of
the sandbox itself raises `SandboxError` and is never the policy's doing. `python -m envs sandbox doctor` tries it out.
"""

from envs.sandbox.limits import LAYERS, LEVELS, Level, Limits, SandboxError, SandboxResult, Status
from envs.sandbox.run import PythonSession, level_here, require_level, run_function, run_program, run_tests

__all__ = [
    "LAYERS",
    "LEVELS",
    "Level",
    "Limits",
    "PythonSession",
    "SandboxError",
    "SandboxResult",
    "Status",
    "level_here",
    "require_level",
    "run_function",
    "run_program",
    "run_tests",
]
