"""`python -m envs`: what each command prints, writes and exits with."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from envs.commands.new import NewEnvironmentError, write_package
from envs.commands.play import play_environment, read_call
from envs.messages import ToolCall


def envs(*arguments: str, path: Path | None = None, typed: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "200"}
    if path is not None:
        environment["PYTHONPATH"] = f"{path}{os.pathsep}{Path.cwd()}"
    command = [sys.executable, "-m", "envs", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, input=typed)


def test_list_names_package_version_and_class() -> None:
    listed = json.loads(envs("list", "--json").stdout)
    store = next(row for row in listed if row["id"] == "tools/Store-v0")
    assert store == {
        "id": "tools/Store-v0",
        "package": "polygym 0.1.0",
        "class": "envs.tool_use.store:Store",
        "problem": "",
    }


def announce(folder: Path, package: str, env_id: str, target: str) -> None:
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[polygym.envs]\n{env_id} = {target}\n")


def test_broken_plugins_are_listed_with_their_problem(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("import numpyy\n")
    announce(tmp_path, "bad", "my/Bad-v0", "bad:Bad")
    announce(tmp_path, "gone", "my/Gone-v0", "gone:Gone")
    announce(tmp_path, "again", "tools/Store-v0", "envs.tool_use.store:Store")
    problems = {row["package"]: row["problem"] for row in json.loads(envs("list", "--json", path=tmp_path).stdout)}
    assert problems["gone 1.0"] == "there is no module gone"
    assert problems["again 1.0"] == "polygym announces the same id"
    assert problems["bad 1.0"] == ""  # nothing was imported
    tried = {
        row["package"]: row["problem"] for row in json.loads(envs("list", "--json", "--try", path=tmp_path).stdout)
    }
    assert "No module named 'numpyy'" in tried["bad 1.0"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["function", "tools", "full"])
def test_a_new_package_passes_its_own_check_as_it_is_written(kind: str, tmp_path: Path) -> None:
    write_package("WordGame", kind, tmp_path)
    package = tmp_path / "polygym-word-game"
    assert len((package / "word_game.py").read_text().splitlines()) <= 40
    (package / "polygym_word_game-0.1.0.dist-info").mkdir()
    announced = (package / "pyproject.toml").read_text().partition('entry-points."polygym.envs"]\n')[2].split("\n")[0]
    env_id, _, target = announced.replace('"', "").partition(" = ")
    announce(package, "polygym-word-game", env_id, target)
    report = tmp_path / "report.json"
    done = envs("check", "my/WordGame-v0", "--seeds", "5", "--report", str(report), path=package)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(json.loads(report.read_text())["checks"]) >= 20
    assert "WordGame" in envs("info", "my/WordGame-v0", path=package).stdout
    tests = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(package / "tests")],
        capture_output=True,
        text=True,
        cwd=package,
        env={**os.environ, "PYTHONPATH": f"{package}{os.pathsep}{Path.cwd()}"},
    )
    assert tests.returncode == 0, tests.stdout


def test_a_package_is_not_written_over_another_or_under_a_bad_name(tmp_path: Path) -> None:
    write_package("Mine", "full", tmp_path)
    with pytest.raises(NewEnvironmentError, match="exists already"):
        write_package("Mine", "full", tmp_path)
    with pytest.raises(NewEnvironmentError, match="begins with a capital"):
        write_package("mine-1", "full", tmp_path)
    with pytest.raises(NewEnvironmentError, match="one of function, tools, full"):
        write_package("Other", "class", tmp_path)


def test_a_failing_check_says_how_to_mend_it_and_exits_with_1() -> None:
    done = envs("check", "tests.test_check:PaysSilence", "--seeds", "3")
    assert done.returncode == 1
    assert "To mend: score an empty text as wrong" in done.stdout


def test_gold_replies_can_be_watched() -> None:
    done = envs("play", "tools/Store-v0", "level=2", "--gold", "--seed", "1")
    assert done.returncode == 0
    assert "reward 1.000" in done.stdout


def test_a_person_plays_with_tools() -> None:
    lines = iter(["!price item=tea", "!price item", "a guess", "", "never read"])
    reward = play_environment(Console(quiet=True), "tools/Store-v0", {}, 0, read_line=lambda prompt: next(lines))
    assert reward == 0.0
    assert next(lines) == "never read"
    assert read_call('find book="a b" count=2') == ToolCall("find", {"book": "a b", "count": 2})


def test_the_end_of_the_input_gives_up() -> None:
    done = envs("play", "math/Arithmetic-v0", typed="")
    assert done.returncode == 0
    assert "given up" in done.stdout


def test_errors_are_one_line() -> None:
    done = envs("info", "math/Aritmetic-v0")
    assert done.returncode == 1
    assert "did you mean math/Arithmetic-v0" in done.stderr
    assert "Traceback" not in done.stderr
    assert envs("info", "math/Arithmetic-v0", "level").returncode == 2
