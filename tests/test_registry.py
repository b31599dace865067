"""Discovery of environments: without imports, with errors that name what to do."""

import subprocess
import sys
from pathlib import Path

import pytest

from envs.math.arithmetic import arithmetic
from envs.registry import (
    EnvironmentPluginError,
    UnknownEnvironmentError,
    announced,
    environment_ids,
    environment_version,
    factory_of,
    make,
)


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A function that installs a package with one announced environment, for the time of a test."""
    monkeypatch.syspath_prepend(tmp_path)

    def install(name: str, env_id: str, target: str, code: str = "") -> None:
        info = tmp_path / f"{name.replace('-', '_')}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[polygym.envs]\n{env_id} = {target}\n")
        if code:
            (tmp_path / f"{target.partition(':')[0]}.py").write_text(code)
        announced.cache_clear()

    announced.cache_clear()
    factory_of.cache_clear()
    yield install
    announced.cache_clear()
    factory_of.cache_clear()


def test_our_environments_are_announced_and_made_by_id() -> None:
    assert {"math/Arithmetic-v0", "tools/Store-v0"} <= set(environment_ids())
    assert isinstance(make("math/Arithmetic-v0"), arithmetic)
    assert isinstance(make("envs.math.arithmetic:arithmetic"), arithmetic)


def test_listing_imports_no_environment() -> None:
    code = "import sys, envs.registry as r; r.environment_ids(); print([*sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "envs.registry" in done.stdout
    assert "envs.math.arithmetic" not in done.stdout


def test_an_unknown_id_names_the_nearest_known_ones() -> None:
    with pytest.raises(UnknownEnvironmentError, match="did you mean math/Arithmetic-v0"):
        make("math/Aritmetic-v0")


def test_an_id_like_no_other_names_all_of_them() -> None:
    with pytest.raises(UnknownEnvironmentError, match=r"known: .*chat/Constraints-v0, "):
        make("zzzzqqqq")


def test_a_plugin_is_found_and_its_version_told(packages) -> None:
    code = "from envs.math.arithmetic import arithmetic\nclass Mine(arithmetic):\n    pass\n"
    packages("my-plugin", "me/Mine-v0", "my_plugin_envs:Mine", code)
    assert type(make("me/Mine-v0")).__name__ == "Mine"
    assert environment_version("me/Mine-v0") == "my-plugin 1.2"


def test_a_plugin_that_cannot_be_imported_is_named_with_the_original_error(packages) -> None:
    packages("broken-plugin", "me/Broken-v0", "broken_plugin_envs:Mine", "import numpyy\n")
    assert "me/Broken-v0" in environment_ids()
    with pytest.raises(EnvironmentPluginError, match=r"broken-plugin 1\.2 .*No module named 'numpyy'"):
        make("me/Broken-v0")


def test_two_packages_with_one_id_are_both_named(packages) -> None:
    packages("plugin-one", "me/Twice-v0", "envs.math.arithmetic:arithmetic")
    packages("plugin-two", "me/Twice-v0", "envs.tool_use.store:Store")
    with pytest.raises(EnvironmentPluginError, match=r"plugin-(one|two) .* and plugin-(one|two) "):
        make("me/Twice-v0")


def test_something_that_is_no_environment_is_refused(packages) -> None:
    packages("odd-plugin", "me/Odd-v0", "collections:OrderedDict")
    with pytest.raises(EnvironmentPluginError, match="is not a TextEnv but a OrderedDict"):
        make("me/Odd-v0")


def test_a_module_and_class_has_its_top_modules_version() -> None:
    assert environment_version("gymnasium.envs:None").startswith("gymnasium 1.")
    assert environment_version("envs.math.arithmetic:arithmetic") == "envs unversioned"
