"""`ray job submit --working-dir .` against a cluster on this machine runs the same command."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rl.chat.formats.nemotron import NemotronFormat
from rl.config.policy import TinyHybrid
from rl.policies import build_policy

pytestmark = pytest.mark.slow

PORT, DASHBOARD_PORT, AGENT_PORT = 46379, 48265, 48266
OPEN = {**os.environ, "RAY_AUTH_MODE": "disabled"}  # a cluster of this machine's own, without a token
RAY = [sys.executable, "-m", "ray.scripts.scripts"]


@pytest.fixture
def dashboard() -> Iterator[str]:
    """The address that jobs are submitted to."""
    address = f"http://127.0.0.1:{DASHBOARD_PORT}"
    ports = [f"--port={PORT}", f"--dashboard-port={DASHBOARD_PORT}", "--dashboard-host=127.0.0.1"]
    ports += [f"--dashboard-agent-listen-port={AGENT_PORT}"]  # another cluster may have taken the default
    start = [*RAY, "start", "--head", "--block", "--num-cpus=2", "--disable-usage-stats", "--include-dashboard=true"]
    # Removed afterwards: for a job's pip packages Ray copies the virtual environment, which takes gigabytes.
    with tempfile.TemporaryDirectory(prefix="ray-job-", ignore_cleanup_errors=True) as temp:
        start += [f"--temp-dir={temp}"]
        with subprocess.Popen([*start, *ports], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=OPEN) as head:
            try:
                wait_for_jobs(address)
                yield address
            finally:
                head.terminate()
                head.wait(timeout=60)


def wait_for_jobs(address: str) -> None:
    for _ in range(90):
        listed = subprocess.run(
            [*RAY, "job", "list", "--address", address], capture_output=True, check=False, timeout=60, env=OPEN
        )
        if listed.returncode == 0:
            return
        time.sleep(1)
    raise AssertionError(f"no Ray dashboard at {address}")


def submitted(command: list[str]) -> "subprocess.CompletedProcess[str]":
    """The job when it is over. The dashboard answers a few seconds before its agent takes jobs."""
    for _ in range(30):
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=400, env=OPEN)
        if "No available agent" not in done.stdout + done.stderr:
            return done
        time.sleep(2)
    raise AssertionError("the dashboard's agent takes no jobs")


def test_a_submitted_job_trains_and_its_results_lie_in_run_dir(
    dashboard: str, repo: Path, tmp_path: Path, new_package: Path
) -> None:
    """The plugin is installed by Ray for this job alone, on every machine that it runs on."""
    policy, run_dir = tmp_path / "policy", tmp_path / "run"
    build_policy(TinyHybrid(), ["<|im_start|>user\n1+1=?<|im_end|>\n"] * 200, policy, 0, NemotronFormat())
    yaml = tmp_path / "experiment.yaml"
    yaml.write_text(
        f"run_dir: {run_dir}\nseed: 0\npolicy: {{path: {policy}}}\n"
        "environments: {math/Arithmetic-v0: {}, my/WordGame-v0: {}}\n"
        "train: {num_steps: 1, num_prompts: 2, group_size: 2}\nevaluation: {num_tasks: 2}\n"
        "rollout: {kv_cache_gib: 0.1, max_in_flight: 4, max_reply_tokens: 16}\n"
    )
    pip = {"packages": [str(new_package)], "pip_install_options": ["--no-deps", "--no-build-isolation"]}
    command = [*RAY, "job", "submit", "--address", dashboard, "--working-dir", str(repo)]
    runtime_env = ["--runtime-env-json", json.dumps({"pip": pip})]
    done = submitted([*command, *runtime_env, "--", "python", "-m", "rl", "train", str(yaml)])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert "step 1/1" in done.stdout
    assert "my/WordGame-v0" in done.stdout
    assert (run_dir / "report.html").exists()
