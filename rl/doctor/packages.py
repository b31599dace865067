"""Are Python and packages those of the pinned list (`requirements/`), and is one there that breaks imports?"""

import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from rl.doctor.findings import INSTALL, Finding

ROOT = Path(__file__).parents[2]
PYTHON = ">=3.11,<3.12"
"""For which the lists are pinned, as pyproject.toml says."""
MOST_SHOWN = 8
DEVELOPMENT = "# development"
"""The line of common.in before the packages that only the project's own checks need."""


def python_findings() -> Iterator[Finding]:
    here = ".".join(map(str, sys.version_info[:3]))
    if here in SpecifierSet(PYTHON):
        yield Finding("Python", "ok", f"{here} ({sys.executable})")
    else:
        fix = f"make a virtual environment with a Python {PYTHON}, then: {INSTALL}"
        yield Finding("Python", "failed", f"{here}, and the pinned packages need {PYTHON}", fix)


def package_findings(requirements: Path = ROOT / "requirements") -> Iterator[Finding]:
    """Missing packages and forbidden versions fail; other versions than the tested ones are a warning."""
    if not requirements.is_dir():
        yield Finding("packages", "warning", f"there is no pinned list in {requirements}", "run from a clone")
        return
    kind = "gpu" if _installed("vllm") else "cpu"
    pinned = _pinned(requirements / f"{kind}.txt")
    installed = {name: _installed(name) for name in pinned}
    needed = _requirements(requirements / f"{kind}.in")
    development = _development(requirements)
    missing = [name for name, found in installed.items() if found is None and name not in development]
    forbidden = [
        f"{name} {found} (needs {needed[name]})"
        for name, found in installed.items()
        if found and name in needed and not needed[name].contains(found, prereleases=True)
    ]
    other = [
        f"{name} {found} (tested: {pinned[name]})"
        for name, found in installed.items()
        if found
        and Version(found) != Version(pinned[name])
        and not any(one.startswith(f"{name} ") for one in forbidden)
    ]
    if missing:
        yield Finding("packages", "failed", f"missing: {_listed(missing)}", INSTALL)
    if forbidden:
        yield Finding("packages", "failed", f"wrong versions: {_listed(forbidden)}", INSTALL)
    if other:
        yield Finding("packages", "warning", f"not the tested versions: {_listed(other)}", INSTALL)
    if not (missing or forbidden or other):
        yield Finding("packages", "ok", f"the {len(pinned)} versions of requirements/{kind}.txt")
    yield from _left_out_findings(requirements, kind)


def _left_out_findings(requirements: Path, kind: str) -> Iterator[Finding]:
    """Packages that the list leaves out, and that are there: do they break imports?"""
    for line in _lines(requirements / "left_out.txt"):
        name, _, reason = line.partition(":")
        if _installed(name) is None or (reason.endswith("(cpu)") and kind == "gpu"):
            continue
        done = subprocess.run([sys.executable, "-c", f"import {name}"], capture_output=True, text=True, timeout=60)
        found = f"{name} {_installed(name)} is installed, which the list leaves out:{reason}"
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            fix = f"{sys.executable} -m pip uninstall {name}"
            yield Finding("packages", "failed", f"{found}; importing it fails: {last[:300]}", fix)
        else:
            yield Finding("packages", "warning", f"{found}; it can be imported here")


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _pinned(path: Path) -> dict[str, str]:
    pairs = [line.split("==") for line in _lines(path)]
    return {_normalised(name): found for name, found in pairs}


def _requirements(path: Path) -> Mapping[str, SpecifierSet]:
    """What this file of wishes, and those that it includes, allow."""
    found: dict[str, SpecifierSet] = {}
    for line in _lines(path):
        if line.startswith("-r "):
            found |= _requirements(path.parent / line.removeprefix("-r "))
        else:
            requirement = Requirement(line)
            found[_normalised(requirement.name)] = requirement.specifier
    return found


def _development(requirements: Path) -> set[str]:
    lines = (requirements / "common.in").read_text().partition(DEVELOPMENT)[2].splitlines()
    return {_normalised(line) for line in lines if line}


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line and not line.startswith("#")]


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _listed(names: list[str]) -> str:
    more = len(names) - MOST_SHOWN
    return ", ".join(names[:MOST_SHOWN]) + (f" and {more} more" if more > 0 else "")
