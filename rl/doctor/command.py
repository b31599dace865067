"""`python -m rl doctor`: is this machine ready, and can this experiment run on it?"""

import contextlib
import functools
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict

from rich.console import Console
from rich.text import Text

from rl.config.experiment import ExperimentConfig
from rl.doctor.findings import Check, Finding, exit_code, findings_of
from rl.doctor.one_step import STEPS, not_tried, step_findings
from rl.doctor.packages import package_findings, python_findings
from rl.stop import raised_signals

STYLES = {"ok": "green", "warning": "yellow", "failed": "bold red"}
EXPERIMENT_S = 300.0
"""Deadline of one check of an experiment: environments may load large data when they open."""


def checks_of(config: ExperimentConfig | None) -> Iterator[Check]:
    """In the order in which they are made: what later ones need comes first."""
    yield Check("Python", python_findings)
    yield Check("packages", package_findings, 120.0)
    try:  # not before: packages that these need may be missing
        from rl.checks import CHECKS
        from rl.doctor.machine import machine_checks
        from rl.doctor.prompt import prompt_findings
    except ImportError as error:
        yield Check("imports", functools.partial(_raise, error))
        return
    for name, find in machine_checks(config).items():
        yield Check(name, find, 120.0)
    if config is not None:
        for name, check_one in CHECKS.items():
            yield Check(name, functools.partial(_passed, name, check_one, config), EXPERIMENT_S)
        yield Check("chat template", functools.partial(prompt_findings, config), EXPERIMENT_S)


def _raise(error: ImportError) -> Iterator[Finding]:
    raise error


def _passed(name: str, check_one: Callable[[ExperimentConfig], None], config: ExperimentConfig) -> Iterator[Finding]:
    check_one(config)
    yield Finding(name, "ok", "nothing is wrong with what a run checks before it starts")


def all_findings(config: ExperimentConfig | None, console: Console) -> Iterator[Finding]:
    """Findings as they come. Engine and learner are not tried if something failed before."""
    has_failed = False
    for check in checks_of(config):
        for finding in _shown_while(check, console):
            has_failed |= finding.status == "failed"
            yield finding
    if config is None:
        return
    if has_failed:
        for name in STEPS:
            yield not_tried(name)
        return
    yield from _shown_while(Check("engine and learner", functools.partial(step_findings, config), None), console)


def _shown_while(check: Check, console: Console) -> list[Finding]:
    longest = "" if check.timeout_s is None else f" (at most {check.timeout_s:g} s)"
    # For each check anew: Ray, which one of them starts and stops, resets the handlers below Python.
    with raised_signals(), console.status(f"{check.name}{longest}"):
        return findings_of(check)


def doctor(config: ExperimentConfig | None, *, as_json: bool) -> int:
    """Check, print the findings as lines or as one JSON object, and return the exit code.

    Raises `StopRequested` after Ctrl-C or SIGTERM, when all that it started has ended.
    """
    console, findings = Console(stderr=as_json, highlight=False), list[Finding]()
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        for finding in all_findings(config, console):
            findings.append(finding)
            if not as_json:
                print_finding(console, finding)
    code = exit_code(findings)
    if as_json:
        print(json.dumps({"exit_code": code, "findings": [asdict(finding) for finding in findings]}, indent=2))
    return code


def print_finding(console: Console, finding: Finding) -> None:
    line = Text(f"{finding.status:8}", STYLES[finding.status])
    found = finding.found.replace("\n", "\n    ")
    line.append(f"{finding.check}: {found}", "default")
    console.print(line, soft_wrap=True)
    if finding.fix:
        console.print(Text(f"          fix: {finding.fix}"), soft_wrap=True)
