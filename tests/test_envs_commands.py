"""`python -m envs`: what each command prints, writes and exits with."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from envs import __main__ as main_module
from envs.commands.new import NewEnvironmentError, write_package
from envs.commands.play import PlayError, play_environment, read_call
from envs.messages import Message, Reply, ToolCall
from envs.session import Deadlines, EnvFailure, Session
from envs.text_env import TextEnv


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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_failing_check_says_how_to_mend_it_and_exits_with_1() -> None:
    done = envs("check", "tests.unsound_envs:PaysSilence", "--seeds", "3")
    assert done.returncode == 1
    assert "To fix: score an empty text as wrong" in done.stdout


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


class Stubborn(TextEnv):
    """Fails where its option says. Option: `where`."""

    OPTIONS = {"where": ""}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        _, chosen = self.read_options(options)
        self.where = chosen["where"]
        if self.where.startswith("reset"):
            raise KeyError(int(self.where.removeprefix("reset ")))
        return (Message("user", "?"),), {}

    def step(self, action: Reply) -> Any:
        if self.where == "step":
            raise ValueError("mine")
        time.sleep(1000 if self.where == "hang" else 0)
        return (), 1.0, True, False, {}


def test_an_environment_that_hangs_is_not_played_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = Session.installed
    monkeypatch.setattr(Session, "installed", lambda env_id: installed(env_id, Deadlines(5.0, 0.2)))
    lines = iter(["a", ""])
    with pytest.raises(PlayError, match=r"step took longer than 0\.2 s"):
        play_environment(
            Console(quiet=True), f"{__name__}:Stubborn", {"where": "hang"}, 0, read_line=lambda prompt: next(lines)
        )


@pytest.mark.slow
def test_a_failure_of_an_environment_is_a_sentence_that_names_it_its_option_and_its_line() -> None:
    done = envs("info", "tests.test_envs_commands:Stubborn", "where=reset first")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "tests.test_envs_commands:Stubborn (seed 0, split train): reset raised ValueError: invalid" in done.stderr
    assert "tests/test_envs_commands.py:" in done.stderr
    assert "with the option where='reset first' (default '')" in done.stderr
    done = envs("play", "tests.test_envs_commands:Stubborn", "where=step", typed="a\n\n")
    assert done.returncode == 1 and "step raised ValueError: mine" in done.stderr and "Traceback" not in done.stderr


def test_a_bug_of_ours_shows_its_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def bug() -> None:
        raise ValueError("a bug")

    def known() -> None:
        raise EnvFailure("me/Mine-v0", "it broke")

    monkeypatch.setattr(main_module, "app", bug)
    with pytest.raises(ValueError, match="a bug"):
        main_module.main()
    monkeypatch.setattr(main_module, "app", known)
    assert main_module.main() == 1
    assert capsys.readouterr().err == "error: me/Mine-v0: it broke\n"


@pytest.mark.slow
def test_a_file_that_cannot_be_read_or_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b'\xff{"task": 1}\n')
    done = envs("profile", str(tmp_path / "file"))
    assert done.returncode == 2 and "file, line 1 is not JSON" in done.stderr and "Traceback" not in done.stderr
    for wrong in (tmp_path / "file" / "below.json", Path("/proc/nowhere.json")):
        done = envs("check", "math/Arithmetic-v0", "--seeds", "1", "--report", str(wrong))
        assert done.returncode == 1 and f"{wrong} cannot be written" in done.stderr and "Traceback" not in done.stderr


def test_the_choice_of_a_row_is_told_apart_from_an_environments_own_options() -> None:
    told = envs("info", "code/HumanEval-v0").stdout
    assert "row=None" not in told and "options none" in told and "row=NUMBER plays that row" in told


def test_errors_are_one_line() -> None:
    done = envs("info", "math/Aritmetic-v0")
    assert done.returncode == 2
    assert "did you mean math/Arithmetic-v0" in done.stderr
    assert "Traceback" not in done.stderr
    assert envs("info", "math/Arithmetic-v0", "level").returncode == 2
