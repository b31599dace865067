"""run.log: every process of a run appends whole, bounded, readable records, and a log that fails stops nothing."""

import logging
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from _pytest.logging import LogCaptureHandler

from envs.errors import told
from rl import run_log as module
from rl.run_log import APART, RunLog, run_log
from rl.runs.folder import RunFolder, RunFolderError
from tests.makers import make_run_config, save_empty_checkpoint

LINE = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} (driver|learner|worker|supervised) \d+ [A-Z]+ [\w.]+: ")


@pytest.fixture
def log(tmp_path: Path) -> Iterator[RunLog]:
    log = RunLog(tmp_path, "worker")
    log.install()
    yield log
    log.remove()


def records(log: RunLog) -> list[str]:
    """The log's records without time and process."""
    return [LINE.sub("", record) for record in re.split(r"\n(?! )", log.path.read_text().removesuffix("\n"))]


def test_a_record_says_when_which_process_how_grave_and_who(log: RunLog) -> None:
    logging.getLogger("rl.engine.thread").info("%d lanes", 3)
    line = log.path.read_text()
    assert re.fullmatch(
        rf"\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{{3}} worker {os.getpid()} INFO rl.engine.thread: 3 lanes\n", line
    )


def test_ours_are_heard_from_info_on_and_libraries_from_warning_on(
    log: RunLog, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.NOTSET, logger="ray")  # ray.init of another test in this process sets it
    for name in ("envs.x", "rewards", "sft.train", "rlx", "vllm.engine", *APART):
        logging.getLogger(name).debug("debug")
        logging.getLogger(name).info("info of %s", name)
        logging.getLogger(name).warning("warning of %s", name)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("an old function", DeprecationWarning, stacklevel=1)
    assert [one for one in records(log) if one.startswith("info")] == [
        "info of envs.x",
        "info of rewards",
        "info of sft.train",
    ]
    heard = [one for one in records(log) if one.startswith("warning")]
    assert heard == [f"warning of {name}" for name in ("envs.x", "rewards", "sft.train", "rlx", "vllm.engine", *APART)]
    assert "DeprecationWarning: an old function" in records(log)[-1]


def test_what_a_policy_causes_is_valid_bounded_text_in_one_record(log: RunLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CHARACTERS", 400)
    root = logging.getLogger()  # pytest's own handlers would put half a character into the test's report
    monkeypatch.setattr(root, "handlers", [one for one in root.handlers if not isinstance(one, LogCaptureHandler)])
    ours = logging.getLogger("envs")
    ours.warning("half \ud800 \x1b[2J\r bell \x07\nand 2026-01-01 00:00:00.000 driver 1 ERROR rl: forged")
    ours.warning("x" * 407)
    try:
        raise ValueError("\udcff" + "y" * 900)
    except ValueError:
        ours.exception("it failed")
    hostile, long, failed = records(log)
    assert hostile == ("half \ufffd \\x1b[2J\\x0d bell \\x07\n  and 2026-01-01 00:00:00.000 driver 1 ERROR rl: forged")
    assert long == "x" * 400 + " ... (7 characters more)"
    assert failed.startswith("it failed\n  Traceback") and "\ufffd" in failed and len(failed) < 500


def test_what_was_shown_without_the_log_is_still_shown_and_once(tmp_path: Path) -> None:
    program = """
import logging, sys, warnings
from pathlib import Path
from rl.run_log import run_log
with run_log(Path(sys.argv[1]), "driver", "started"):
    logging.getLogger("rl.x").warning("of ours")
    logging.getLogger("rl.x").info("for the log only")
    warnings.warn("of Python")
assert logging.getLogger().handlers == [] and logging.getLogger("rl").level == logging.NOTSET
warnings.warn("afterwards")
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True, timeout=60
    )
    for words, num in (("of ours", 1), ("of Python", 1), ("afterwards", 1), ("for the log only", 0), ("started", 0)):
        assert done.stderr.count(words) == num
    assert "afterwards" not in (tmp_path / "run.log").read_text()


def test_processes_that_write_at_once_tear_no_line_and_lose_none_while_the_log_rotates(tmp_path: Path) -> None:
    program = """
import logging, sys
from pathlib import Path
from rl import run_log
run_log.MAX_BYTES = 60_000
run_log.join_run_log(Path(sys.argv[1]), "worker")
for number in range(200):
    logging.getLogger("rl").info("%s", f"{sys.argv[2]}-{number}-" + "z" * 100)
"""
    started = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path), name]) for name in "abc"]
    assert [process.wait(timeout=60) for process in started] == [0, 0, 0]
    newer, older = (tmp_path / "run.log").read_text(), (tmp_path / "run.log.1").read_text()
    assert len(newer) < 60_000 and len(older) < 61_000
    said = [LINE.sub("", line) for line in (older + newer).splitlines()]
    wanted = {f"{name}-{number}-" + "z" * 100 for name in "abc" for number in range(200)}
    assert len(said) == len(set(said)) and set(said) <= wanted  # 600 records of 160 bytes: some rotated out
    assert {f"{name}-199-" + "z" * 100 for name in "abc"} <= set(said)


@pytest.mark.parametrize("what", ["gone", "folder", "pipe"])
def test_a_log_that_cannot_be_written_is_told_once_and_stops_nothing(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    if what != "gone":
        folder.mkdir()
        (folder / "run.log").mkdir() if what == "folder" else os.mkfifo(folder / "run.log")
    with pytest.raises(ValueError) as caught, run_log(folder, "driver", "started"):
        logging.getLogger("rl").warning("not written")
        raise ValueError("the reason")
    assert capsys.readouterr().err.count("run.log cannot be written: ") == 1
    assert folder.exists() == (what != "gone")
    assert told(caught.value) == "the reason"  # and no file that holds nothing


def test_an_error_is_in_the_log_with_its_traceback_and_names_the_log(tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught, run_log(tmp_path, "driver", "python -m rl train a.yaml"):
        raise ValueError("the reason")
    text = (tmp_path / "run.log").read_text()
    assert "INFO rl.run_log: python -m rl train a.yaml\n" in text
    assert "ERROR rl.run_log: failed\n  Traceback" in text and "  ValueError: the reason\n" in text
    assert told(caught.value) == f"the reason\nmessages of all processes: {tmp_path}/run.log"
    with pytest.raises(KeyboardInterrupt) as stopped, run_log(tmp_path, "driver", "again"):
        raise KeyboardInterrupt
    assert told(stopped.value) == ""  # a stop is no error
    assert (tmp_path / "run.log").read_text().startswith(text)


def test_a_start_and_a_resume_are_in_one_log_and_a_refused_start_is_not(tmp_path: Path) -> None:
    config = make_run_config(tmp_path / "run")
    with RunFolder.open(config) as run:
        save_empty_checkpoint(run, 2)
    with pytest.raises(RunFolderError), RunFolder.open(config):
        pass
    with RunFolder.open(config, resume=True):
        pass
    starts, remark = [], ""
    for line in (tmp_path / "run" / "run.log").read_text().splitlines():
        starts += [line] if "started on" in line else []
        remark = line if "lacks steps 1 to 2" in line else remark
    assert len(starts) == 2 and all("python" in line and "Python 3.11" in line and "ray==" in line for line in starts)
    assert " WARNING rl.runs.folder: " in remark


YAML = {
    "seed": 3,
    "policy": {"build": {}},
    "environments": {"math/Arithmetic-v0": {}},
    "sft": {"num_steps": 2, "num_conversations": 64, "batch_size": 8},
    "train": {"num_steps": 1, "num_prompts": 2, "group_size": 2},
    "evaluation": {"num_tasks": 2},
    "rollout": {"max_in_flight": 8, "kv_cache_gib": 0.1},
    "ray": {"address": "local"},
}


@pytest.mark.slow
def test_a_run_s_log_has_all_of_its_processes_and_a_failure_names_it(tmp_path: Path) -> None:
    path, run = tmp_path / "experiment.yaml", tmp_path / "run"
    path.write_text(yaml.safe_dump({**YAML, "run_dir": str(run)}))
    command = [sys.executable, "-m", "rl", "train", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=480, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    lines = (run / "run.log").read_text().splitlines()
    assert {match[1] for line in lines if (match := LINE.match(line))} == {"driver", "supervised", "learner", "worker"}
    for words in ("-m rl train", "-m sft train", "supervised step 2/2", "step 1/1  reward", "Ray's files"):
        assert any(words in line for line in lines), words
    policy = ("sft=null", "policy.build=null", f"policy.path={run / 'sft'}")
    failing = [*command, *policy, f"run_dir={tmp_path / 'again'}", "train.start_timeout_s=0.5"]
    failed = subprocess.run(failing, capture_output=True, text=True, timeout=480, check=False)
    assert failed.returncode == 1
    assert failed.stderr.endswith(f"messages of all processes: {tmp_path / 'again' / 'run.log'}\n")
    assert "DeadlinePassed: starting the" in (tmp_path / "again" / "run.log").read_text()


def test_the_bound_is_that_of_the_documents(repo: Path) -> None:
    assert f"{module.MAX_BYTES // 2**20} MiB" in (repo / "docs" / "troubleshooting.md").read_text()
