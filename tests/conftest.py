"""Fixtures that several modules use; what they are made of is in tests/makers.py and tests/scripted.py."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import pytest
from hypothesis import settings

from envs.commands.new import write_package

settings.register_profile("tests", deadline=None)  # a busy machine is no failure of a property
settings.load_profile("tests")


@pytest.fixture
def new_package(tmp_path: Path) -> Path:
    """The folder of a package as `envs new` writes it; it announces my/WordGame-v0."""
    write_package("WordGame", "function", tmp_path)
    return tmp_path / "polygym-word-game"


@pytest.fixture(scope="session")
def repo() -> Path:
    return Path(__file__).parent.parent
