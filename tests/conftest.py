"""Fixtures that several modules use; what they are made of is in tests/makers.py and tests/scripted.py."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import pytest
from hypothesis import settings

from envs.commands.new import write_package

settings.register_profile("tests", deadline=None)  # a busy machine is no failure of a property
settings.load_profile("tests")


LONGEST = (
    *("test_benchmarks", "test_train", "test_replay", "test_families", "test_guides", "test_doctor_whole"),
    "test_two_nodes",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: a worker takes a file at a time, and the others would wait for one that comes last."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


@pytest.fixture
def new_package(tmp_path: Path) -> Path:
    """The folder of a package as `envs new` writes it; it announces my/WordGame-v0."""
    write_package("WordGame", "function", tmp_path)
    return tmp_path / "polygym-word-game"


@pytest.fixture(scope="session")
def repo() -> Path:
    return Path(__file__).parent.parent
