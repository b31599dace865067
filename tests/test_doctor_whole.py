"""`rl doctor YAML` as a user runs it: on tiny policies that work, and with an engine that cannot start."""

import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from rl.config.experiment import ExperimentConfig
from rl.config.read import dump_config
from tests.makers import STORE, make_config
from tests.test_doctor import BUILT

pytestmark = pytest.mark.slow


def doctor(*arguments: object) -> tuple[int, dict[str, Any], str]:
    """Exit code, findings by check, and what was said beside the JSON."""
    program = [sys.executable, "-m", "rl", "doctor", *map(str, arguments), "--json"]
    done = subprocess.run(program, capture_output=True, text=True, timeout=480, check=False)
    told = json.loads(done.stdout)
    assert told["exit_code"] == done.returncode
    return done.returncode, {one["check"]: one for one in told["findings"]}, done.stderr


def write(config: ExperimentConfig, folder: Path) -> Path:
    path = folder / "experiment.yaml"
    path.write_text(dump_config(config))
    return path


SMALL: dict[str, Any] = {"rollout": {"max_in_flight": 8, "kv_cache_gib": 0.1}, "ray": {"address": "local"}}


def test_a_machine_that_runs_the_tests_runs_a_tiny_policy(tmp_path: Path) -> None:
    path = write(make_config(tmp_path / "run", **BUILT, **SMALL), tmp_path)
    code, findings, _ = doctor(path)
    assert code == 0, findings
    assert {one["status"] for one in findings.values() if one["check"] not in ("memory", "packages")} == {"ok"}
    assert "mismatch between learner and engine 1.0000" in findings["learner step"]["found"]
    assert findings["publishing"]["status"] == "ok"
    assert list(tmp_path.iterdir()) == [path]


def test_a_tiny_qwen_is_recognised_and_trained_and_an_engine_that_cannot_start_is_told(tmp_path: Path) -> None:
    from tests.families import write_policy

    policy = {"path": write_policy("qwen3", tmp_path / "policy"), "max_tokens": 1500}
    environments = {STORE: {"budget": {"off": 1, "300": 1, "unlimited": 1}}}
    settings = {**SMALL, "rollout": {**SMALL["rollout"], "max_reply_tokens": 400}}
    path = write(make_config(tmp_path / "run", policy=policy, environments=environments, **settings), tmp_path)
    code, findings, _ = doctor(path)
    assert code == 0, findings
    assert findings["chat template"]["found"].startswith(
        "has tools, has think block, writes calls in the style hermes;"
    )
    assert "<|im_start|>user" in findings["chat template"]["found"]
    assert "mismatch between learner and engine 1.0000" in findings["learner step"]["found"]
    code, findings, _ = doctor(path, "rollout.kv_cache_gib=0.0001")
    assert code == 1
    failed = findings["engine step"]
    assert failed["status"] == "failed" and "vLLM cannot serve" in failed["found"]
    kept = re.search(r"messages of all processes: (\S+/polygym-doctor-\w+)/run/run.log", failed["found"])
    assert kept is not None and (Path(kept[1]) / "run" / "run.log").is_file()
    shutil.rmtree(kept[1])
    assert findings["learner step"]["found"] == "not tried, because of what failed before"


def test_a_doctor_that_is_stopped_takes_its_step_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While engines load, for whose end nobody waits. Ray's own agents may notice later that their node is gone."""
    path = write(make_config(tmp_path / "run", **BUILT, **SMALL), tmp_path)
    folder = Path(tempfile.mkdtemp(prefix="d", dir="/tmp"))  # short, because sockets of Ray are in it
    monkeypatch.setenv("TMPDIR", str(folder))
    process = subprocess.Popen([sys.executable, "-m", "rl", "doctor", str(path)], stdout=subprocess.DEVNULL)
    family: list[psutil.Process] = []
    deadline = time.monotonic() + 240
    while not any("RolloutWorker" in name_of(one) for one in family) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.1)
        family = psutil.Process(process.pid).children(recursive=True)
    family = [one for one in family if "Agent" not in name_of(one) and "/agent" not in name_of(one)]
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 143
    assert psutil.wait_procs(family, timeout=5)[1] == []
    assert list(folder.glob("polygym-doctor-*")) == []
    shutil.rmtree(folder)


def name_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
