"""Fixtures that several modules use; what they are made of is in tests/makers.py and tests/scripted.py."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
from hypothesis import settings

from envs.commands.new import write_package
from tests.warm_commands import starts_warm, warm_commands

settings.register_profile("tests", deadline=None)  # a busy machine is no failure of a property
settings.load_profile("tests")


LONGEST = (
    *("test_benchmarks", "test_train", "test_replay", "test_families", "test_guides", "test_doctor_whole"),
    "test_two_nodes",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: a worker takes a file at a time, and the others would wait for one that comes last."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


@pytest.fixture(scope="session", autouse=True)
def warm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Slow tests start hundreds of processes, most of whose time would be imports."""
    is_slow = any(item.get_closest_marker("slow") for item in request.session.items)
    with warm_commands(tmp_path_factory.mktemp("warm")) if is_slow and starts_warm() else nullcontext():
        yield


@pytest.fixture
def new_package(tmp_path: Path) -> Path:
    """The folder of a package as `envs new` writes it; it announces my/WordGame-v0."""
    write_package("WordGame", "function", tmp_path)
    return tmp_path / "polygym-word-game"


@pytest.fixture(scope="session")
def repo() -> Path:
    return Path(__file__).parent.parent
