"""One rule of exit codes for every command: wrong arguments, configuration and input end with 2, failed work with 1."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer

from envs import __main__ as envs_main
from envs.errors import InputError
from envs.exit_codes import run_command
from envs.session import EnvFailure
from envs.text_env import EnvironmentOptionError
from rl import __main__ as rl_main
from rl.algorithms.corrections import NonFiniteError
from rl.cluster.address import ClusterError
from rl.config.errors import ConfigError
from rl.runs.canaries import CanaryStop
from rl.stop import StopRequested
from sft import __main__ as sft_main

MAINS = {"rl": rl_main, "envs": envs_main, "sft": sft_main}
ENV = "math/Arithmetic-v0"
NOTHING_TO_GIVE = {"envs list", "envs doctor"}
"""Commands that take nothing that can be missing."""
WRONG: dict[str, list[list[str]]] = {
    "rl init": [["policy.yaml", "--env", "math/Nothing-v0"], ["used.yaml", "--env", ENV]],
    "rl plan": [["none.yaml"], ["used.yaml"], ["used.yaml", "--gpu", "abacus"]],
    "rl doctor": [["none.yaml"]],
    "rl train": [
        ["none.yaml"],
        ["used.yaml"],
        ["used.yaml", "--resume"],
        ["used.yaml", "--resume", "--resume-if-any"],
    ],
    "rl chain": [
        ["none.yaml"],
        ["used.yaml"],
        ["chain.yaml"],
        ["chain.yaml", "--resume"],
        ["chain.yaml", "--dry-run"],
        ["chain.yaml", "stages.one.from=two"],
    ],
    "rl evaluate": [["none.yaml"], ["used.yaml", "--split", "all"]],
    "rl export": [["none", "out"], ["empty", "out"]],
    "rl int4": [["none", "out"], ["empty", "out"], ["none", "used.yaml"]],
    "rl serve": [["none"], ["empty"], ["empty", "--gpu-memory-share", "7"]],
    "rl report": [["none"], ["empty"]],
    "rl compare": [["none", "empty"], ["empty"]],
    "rl inspect": [["none"], ["empty"], ["empty", "--outcome", "good"], ["empty", "--kind", "all"]],
    "rl explain": [["no.such.key"]],
    "sft train": [["none.yaml"], ["used.yaml"]],
    "sft show": [["none.yaml"], ["used.yaml"]],
    "sft dpo": [["none.yaml"], ["used.yaml"], ["used.yaml", "dpo.data=none.jsonl"], ["used.yaml", "dpo.beta=0"]],
    "sft reward-model": [["none.yaml"], ["used.yaml"], ["used.yaml", "reward_model.data=none.jsonl"]],
    "sft smollm2": [[]],
    "sft from-rollouts": [
        ["none", "--out", "x.jsonl"],
        ["empty", "--out", "x.jsonl"],
        ["empty"],
        ["used.yaml", "--out", "x.jsonl", "--choose", "long"],
    ],
    "envs info": [["math/Nothing-v0"], [ENV, "levle=1"], [ENV, "level=99"], ["nowhere:Nothing"]],
    "envs new": [["lower", "--out", "."], ["Mine", "--kind", "class"]],
    "envs check": [["math/Nothing-v0"], [ENV, "level"]],
    "envs play": [["math/Nothing-v0", "--gold"], [ENV, "--gold", "levle=1"], [ENV, "--gold", "level=99"]],
    "envs eval": [
        [ENV],
        [ENV, "--policy", "none"],
        [ENV, "--policy", "empty"],
        [ENV, "--policy", "empty", "--split", "all"],
        [ENV, "level=99", "--model", "m"],
        ["math/Nothing-v0", "--model", "m"],
    ],
    "envs pivots": [["none", "--out", "x.jsonl"], ["used.yaml", "--out", "x.jsonl"], ["none"]],
    "envs profile": [["none"], ["empty"], ["used.yaml"], ["none", "--max-mean", "0.5"]],
    "envs replay": [["none"], ["empty"], ["used.yaml"]],
    "envs view": [["none"], ["empty"], ["used.yaml"]],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working directory: an empty folder, and an experiment whose policy and data are missing."""
    here = tmp_path_factory.mktemp("work")
    (here / "empty").mkdir()
    lines = ["run_dir: run", "seed: 0", "policy: {path: none}", f"environments: {{{ENV}: {{}}}}"]
    (here / "used.yaml").write_text("\n".join([*lines, "train: {num_steps: 1}", "sft: {data: none.jsonl}"]) + "\n")
    (here / "chain.yaml").write_text("run_dir: chain\nstages: {one: {command: sft train, yaml: used.yaml}}\n")
    yield here


def ended_with(program: str, *arguments: str) -> int:
    """The exit code of a command in this process."""
    sys.argv = [program, *arguments]
    try:
        return MAINS[program].main()
    except SystemExit as end:  # typer ends the process itself for usage errors, and when all went well
        return int(end.code or 0)


@pytest.mark.parametrize(("command", "arguments"), [(name, given) for name, all in WRONG.items() for given in all])
def test_wrong_or_missing_input_ends_every_command_with_2_before_anything_is_begun(
    command: str,
    arguments: list[str],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [])
    program, name = command.split()
    before = sorted(os.listdir())
    assert ended_with(program, name, *arguments) == 2
    said = capsys.readouterr().err
    assert said and "Traceback" not in said
    assert sorted(os.listdir()) == before


def test_no_command_is_left_out() -> None:
    apps: dict[str, list[typer.Typer]] = {
        "rl": [rl_main.app],
        "envs": [envs_main.app, envs_main.sandbox],
        "sft": [sft_main.app],
    }
    commands = {
        f"{program} {command.name or getattr(command.callback, '__name__', '')}"
        for program, its in apps.items()
        for app in its
        for command in app.registered_commands
    }
    assert commands == WRONG.keys() | NOTHING_TO_GIVE


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ConfigError("wrong"), 2, "error: wrong\n"),
        (EnvFailure("me", "wrong", error=EnvironmentOptionError("wrong")), 2, "error: me: wrong\n"),
        (EnvFailure("me", "KeyError", phase="step", error=KeyError("x")), 1, "error: me: step raised KeyError\n"),
        (ClusterError("an engine died"), 1, "error: an engine died\n"),
        (NonFiniteError("step 3: the loss is nan"), 1, "error: step 3: the loss is nan\n"),
        (CanaryStop("NaN"), 3, "stopped by a canary, a threshold of the section canaries: NaN\n"),
        (StopRequested("SIGTERM", 143), 143, "stopped: SIGTERM\nthe same command continues"),
    ],
)
def test_an_error_carries_its_exit_code(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(raising(error)) == code
    assert capsys.readouterr().err.startswith(said)


def test_an_exit_code_stays_when_nobody_reads_why(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", encoding="utf-8") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        assert run_command(raising(StopRequested("SIGINT", 130))) == 130


def test_an_error_of_a_foreign_type_is_a_bug_and_shows_its_traceback() -> None:
    with pytest.raises(KeyError):
        run_command(raising(KeyError("x")))
    assert not issubclass(KeyError, InputError)


def raising(error: BaseException) -> Callable[[], None]:
    def app() -> None:
        raise error

    return app
