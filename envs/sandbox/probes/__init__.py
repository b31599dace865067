"""Does the sandbox hold? Real escapes and cheats: each tries to reach something that this process guards.

Used by `python -m envs sandbox doctor` and by the tests, at every level.
"""

from envs.sandbox.probes.attempt import Probe, ProbeResult, run_probe
from envs.sandbox.probes.grading import GRADING
from envs.sandbox.probes.kernel import KERNEL
from envs.sandbox.probes.reach import REACH
from envs.sandbox.probes.resources import RESOURCES
from envs.sandbox.probes.target import Target, target

PROBES = (*RESOURCES, *REACH, *KERNEL, *GRADING)

__all__ = ["PROBES", "Probe", "ProbeResult", "Target", "run_probe", "target"]
