"""Each package that is imported is ours, and the top level holds nothing else."""

import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

PACKAGES = ("rl", "envs", "rewards", "sft")


def test_the_imported_packages_are_ours(repo: Path) -> None:
    names = ", ".join(PACKAGES)
    program = f"import {names}; print(*(package.__file__ for package in ({names})), sep='\\n')"
    command = [sys.executable, "-c", program]
    places = subprocess.run(command, cwd=repo, capture_output=True, text=True, check=True, timeout=60).stdout
    assert [Path(place) for place in places.splitlines()] == [repo / name / "__init__.py" for name in PACKAGES]
    installed = packages_distributions()
    assert all(set(installed.get(name, ["polygym"])) == {"polygym"} for name in PACKAGES)


def test_environments_and_rewards_import_without_the_heavy_packages(repo: Path) -> None:
    program = (
        "import sys, envs.registry, envs.text_env, rl.config.experiment, rl.config.read;"
        "print([name for name in ('torch', 'ray', 'vllm', 'trl', 'transformers') if name in sys.modules])"
    )
    command = [sys.executable, "-c", program]
    printed = subprocess.run(command, cwd=repo, capture_output=True, text=True, check=True, timeout=60).stdout
    assert printed.strip() == "[]"


def test_the_code_has_no_grab_bags_and_no_second_level_of_tests(repo: Path) -> None:
    names = {path.name for package in PACKAGES for path in (repo / package).rglob("*.py")}
    assert not names & {"utils.py", "helpers.py", "common.py", "misc.py"}
    assert not list((repo / "tests").glob("*/**/*.py"))  # folders hold data
