"""No escape gets out of the sandbox, and every one of them does where nothing holds it."""

import subprocess
import sys

import pytest

from envs.sandbox import LEVELS, Level
from envs.sandbox.probes import PROBES, Probe, run_probe, target

UNHELD = {
    "threads without end", "datagram to a socket in the file system", "datagram to an abstract socket",
    "descriptors in a datagram", "has a socket signal a process", "has the kernel send signals",
    "has descriptors send signals", "signals by other calls", "outlives its supervisor", "sees that files exist",
    "enters a folder outside", "leaves its root", "shared memory of the host", "System V names", "message queues",
    "asynchronous input and output", "watches files", "timers of the user", "writes out all disks", "huge pages",
    "locks memory",
}  # fmt: skip
"""Probes that any unprivileged process gets through, also in a container."""


@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.name)
def test_no_probe_escapes_from_the_level_that_must_hold_it(probe: Probe, level: Level) -> None:
    with target() as aim:
        result = run_probe(probe, level, aim)
    assert result.is_expected(level), result.detail


@pytest.mark.slow
def test_the_probes_are_real_attempts() -> None:
    """The same probes get through where a layer is missing: without Landlock and seccomp many must escape."""
    with target() as aim:
        escaped = {probe.name for probe in PROBES if not run_probe(probe, "process", aim).held}
    assert {"password file", "UDP", "list of the root folder"} <= escaped


@pytest.mark.slow
@pytest.mark.parametrize("probe", [probe for probe in PROBES if probe.name in UNHELD], ids=lambda probe: probe.name)
def test_a_probe_gets_through_where_nothing_holds_it(probe: Probe) -> None:
    with target() as aim:
        command = [sys.executable, "-I", "-c", aim.fill(probe.code)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "ESCAPED" in done.stdout or not aim.is_untouched


def test_the_probes_that_must_get_through_are_there() -> None:
    assert {probe.name for probe in PROBES} >= UNHELD
