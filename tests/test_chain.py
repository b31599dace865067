"""Stages run in order, a chain goes on where it stopped, and no process outlives it. Most tests run no real stage."""

import os
import shutil
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import pytest

from rl.chain.run import check_chain, run_chain
from rl.config.errors import ConfigError
from rl.process import run_process
from rl.stop import StopRequested, handled_signals
from tests.test_chain_config import EXPERIMENT
from tests.test_rl_commands import run

CHAIN = """
run_dir: {folder}/chain
yaml: experiment.yaml
stages:
  first: {{command: sft train}}
  second: {{command: rl train}}
  rows: {{command: sft from-rollouts}}
"""
Run = Callable[[Sequence[str]], tuple[int, StopRequested | None]]


@pytest.fixture
def yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "experiment.yaml").write_text(EXPERIMENT)
    path = tmp_path / "chain.yaml"
    path.write_text(CHAIN.format(folder=tmp_path))
    monkeypatch.setattr("rl.chain.run.check_stages", lambda _: None)
    return path


class Processes:
    """Commands that leave their result at once; the one of `ends` ends otherwise."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.ends: dict[str, tuple[int, StopRequested | None]] = {}

    def __call__(self, words: Sequence[str]) -> tuple[int, StopRequested | None]:
        name = " ".join(words[:2])
        self.ran.append(name + (" --resume-if-any" if "--resume-if-any" in words else ""))
        if name in self.ends:
            return self.ends.pop(name)
        folder = Path(next((word for word in words if word.startswith("run_dir=")), "").removeprefix("run_dir="))
        results = {"sft train": folder / "sft", "rl export": Path(words[-1])}
        if name == "sft from-rollouts":
            out = Path(words[list(words).index("--out") + 1])
            out.parent.mkdir()
            out.write_text("{}\n")
        if name in results:
            results[name].mkdir(parents=True)
        return 0, None


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Processes:
    made = Processes()
    monkeypatch.setattr("rl.chain.run.run_process", made)
    return made


ALL = ["sft train", "rl train --resume-if-any", "rl export", "sft from-rollouts"]


def test_stages_run_in_order_and_a_policy_is_exported(yaml: Path, processes: Processes, tmp_path: Path) -> None:
    report = run_chain(yaml)
    assert processes.ran == ALL
    assert report == tmp_path / "chain" / "report.html" and report.is_file()


def test_a_chain_that_began_needs_resume_and_then_skips_what_is_finished(
    yaml: Path, processes: Processes, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="holds no chain to resume; omit --resume"):
        run_chain(yaml, resume=True)
    run_chain(yaml, resume=None)
    with pytest.raises(ConfigError, match="already holds a chain; continue it with --resume"):
        run_chain(yaml)
    processes.ran.clear()
    run_chain(yaml, resume=None)
    assert processes.ran == []


def test_folders_that_other_commands_made_are_not_taken_for_stages(yaml: Path, tmp_path: Path) -> None:
    (tmp_path / "chain" / "second").mkdir(parents=True)
    with pytest.raises(ConfigError, match="chain/second is there already"):
        run_chain(yaml)


def test_the_first_stage_that_fails_ends_the_chain_with_its_code_and_resume_begins_there(
    yaml: Path, processes: Processes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    processes.ends["rl train"] = (3, None)
    assert run(monkeypatch, "chain", yaml) == 3
    assert "error: stage second ended with exit code 3" in capsys.readouterr().err
    processes.ends["rl export"] = (-9, None)
    assert run(monkeypatch, "chain", yaml, "--resume") == 137
    assert processes.ran == ["sft train", "rl train --resume-if-any", "rl train --resume-if-any", "rl export"]
    processes.ran.clear()
    assert run(monkeypatch, "chain", yaml, "--resume") == 0
    assert processes.ran == ALL[1:]
    assert run(monkeypatch, "chain", yaml, "--resume", "--resume-if-any") == 2


def test_a_stop_ends_the_chain_and_a_stage_that_ended_meanwhile_is_finished(
    yaml: Path,
    processes: Processes,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    processes.ends["rl train"] = (0, StopRequested("SIGTERM", 143))
    assert run(monkeypatch, "chain", yaml) == 143
    assert capsys.readouterr().err == "stopped by SIGTERM; continue with --resume\n"
    processes.ends["rl export"] = (0, StopRequested("SIGINT", 130))
    (tmp_path / "chain" / "second" / "exported").mkdir(parents=True)  # of the export that the stop did not reach
    monkeypatch.setattr("rl.chain.run.remove", lambda _: None)
    assert run(monkeypatch, "chain", yaml, "--resume") == 130
    processes.ran.clear()
    assert run(monkeypatch, "chain", yaml, "--resume") == 0
    assert processes.ran == ["sft from-rollouts"]


def test_a_finished_stage_must_be_of_the_same_configuration(yaml: Path, processes: Processes, tmp_path: Path) -> None:
    run_chain(yaml)
    run_chain(yaml, ["stages.second.set.train.start_timeout_s=9"], resume=True)  # which changes no result
    with pytest.raises(
        ConfigError, match=r"stage second is finished, with another (.|\n)*train.num_steps: was 3, now 4"
    ):
        run_chain(yaml, ["stages.second.set.train.num_steps=4"], resume=True)
    with pytest.raises(ConfigError, match=r"stage rows is finished, with another (.|\n)*--pairs"):
        run_chain(yaml, ["stages.rows.set.pairs=true"], resume=True)
    (tmp_path / "chain" / "rows" / "rows.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"stage rows is finished, but .*rows.jsonl is not there"):
        run_chain(yaml, resume=True)


def test_what_was_made_from_a_stage_that_is_to_run_again_is_not_kept(
    yaml: Path, processes: Processes, tmp_path: Path
) -> None:
    run_chain(yaml)
    for file in (tmp_path / "chain" / "first").iterdir():
        file.rename(tmp_path / file.name)
    with pytest.raises(ConfigError, match="stage second is finished, but stage first, from which it was made, is not"):
        run_chain(yaml, resume=True)


def test_what_was_begun_from_a_stage_that_is_to_run_again_does_not_go_on(
    yaml: Path, processes: Processes, tmp_path: Path
) -> None:
    processes.ends["rl train"] = (1, None)
    with pytest.raises(RuntimeError, match="stage second ended with exit code 1"):
        run_chain(yaml)
    shutil.rmtree(tmp_path / "chain" / "first")
    with pytest.raises(ConfigError, match=r"second was begun from what stage first made(.|\n)*delete .*second too"):
        run_chain(yaml, resume=True)
    shutil.rmtree(tmp_path / "chain" / "second")
    run_chain(yaml, resume=True)


def test_a_stage_is_finished_with_the_configuration_that_its_yaml_had_when_it_began(
    yaml: Path, processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def edited(words: Sequence[str]) -> tuple[int, StopRequested | None]:
        (tmp_path / "experiment.yaml").write_text(EXPERIMENT.replace("num_steps: 5", "num_steps: 6"))
        return processes(words)

    monkeypatch.setattr("rl.chain.run.run_process", edited)
    run_chain(yaml)
    with pytest.raises(ConfigError, match=r"stage first is finished, with another (.|\n)*sft.num_steps: was 5, now 6"):
        run_chain(yaml, resume=True)


def test_a_dry_run_writes_nothing(yaml: Path, processes: Processes, tmp_path: Path) -> None:
    check_chain(yaml)
    assert processes.ran == [] and not (tmp_path / "chain").exists()


def test_a_fault_that_the_checks_find_leaves_nothing(
    yaml: Path, processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(_: object) -> None:
        raise ConfigError("wrong")

    monkeypatch.setattr("rl.chain.run.check_stages", check)
    with pytest.raises(ConfigError, match="wrong"):
        run_chain(yaml)
    assert processes.ran == [] and not (tmp_path / "chain").exists()


def test_the_code_of_a_process_is_returned() -> None:
    assert run_process(["rl.no_such_module"]) == (1, None)


def test_a_process_that_a_stop_ends_before_it_is_passed_on_was_stopped() -> None:
    with handled_signals():
        os.kill(os.getpid(), signal.SIGINT)
        _, stopped = run_process(["rl.no_such_module"])
    assert stopped is not None and stopped.exit_code == 130


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_goes_to_the_running_process_which_has_ended_afterwards(number: signal.Signals) -> None:
    before = set(psutil.Process().children())  # workers that other tests of this process have started

    def started() -> list[psutil.Process]:
        return [child for child in psutil.Process().children() if child not in before]

    def stop() -> None:
        while not (children := started()):
            pass
        while b"http.server" not in Path(f"/proc/{children[0].pid}/cmdline").read_bytes():
            pass
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=stop)
    with handled_signals():
        thread.start()
        code, stopped = run_process(["http.server", "0", "--bind", "127.0.0.1"])
    thread.join()
    assert code != 0 or number == signal.SIGINT  # that server ends by Ctrl-C without an error
    assert stopped is not None and stopped.exit_code == 128 + number
    assert started() == []
