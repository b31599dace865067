"""The guide to clusters: what Kubernetes, Slurm and Docker are given is whole, and its commands are ours."""

import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from rl.__main__ import app
from rl.config.read import load_config

ROOT = Path(__file__).parent.parent
FILES = ROOT / "docs" / "clusters"


def manifest(name: str) -> Any:
    (document,) = yaml.safe_load_all((FILES / name).read_text())
    assert document["apiVersion"] == "ray.io/v1"
    return document


def check_train(words: list[str]) -> dict[str, Any]:
    """The options of this `rl train` command, if its options and keys are known."""
    assert words[:4] == ["python", "-m", "rl", "train"]
    command: Any = typer.main.get_command(app)
    given = command.commands["train"].make_context("train", words[4:]).params
    load_config(ROOT / "experiments" / "quickstart.yaml", list(given["overrides"]))
    return given


def pod_of(group: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The pod of a group, and its one container."""
    pod = group["template"]["spec"]
    (container,) = pod["containers"]
    return pod, container


def test_a_job_that_kuberay_starts_again_resumes_its_run() -> None:
    job = manifest("rayjob.yaml")
    assert job["kind"] == "RayJob" and job["metadata"]["name"]
    spec = job["spec"]
    assert spec["backoffLimit"] > 0 and spec["shutdownAfterJobFinishes"] is True
    given = check_train(shlex.split(spec["entrypoint"]))
    assert given["resume_if_any"] and not given["resume"]
    paths = [str(given["yaml"]), *(value.removeprefix("run_dir=") for value in given["overrides"])]
    assert all(path.startswith("/shared/") for path in paths)


def test_the_job_and_the_cluster_that_stays_have_the_same_nodes() -> None:
    cluster = manifest("raycluster.yaml")
    assert cluster["kind"] == "RayCluster" and cluster["metadata"]["name"]
    assert cluster["spec"] == manifest("rayjob.yaml")["spec"]["rayClusterSpec"]


def test_the_cluster_has_a_head_that_only_drives_and_workers_with_cards_and_shared_memory() -> None:
    spec = manifest("raycluster.yaml")["spec"]
    pinned = re.search(r"^ray==(\S+)$", (ROOT / "requirements" / "gpu.txt").read_text(), re.MULTILINE)
    assert pinned and spec["rayVersion"] == pinned[1]
    head, (workers,) = spec["headGroupSpec"], spec["workerGroupSpecs"]
    assert head["rayStartParams"]["num-gpus"] == "0"
    assert workers["groupName"] and workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
    for group in (head, workers):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        pod, container = pod_of(group)
        assert container["image"] == pod_of(head)[1]["image"]
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
        assert volumes[mounts["/shared"]]["persistentVolumeClaim"]["claimName"]
        resources = container["resources"]
        assert resources["limits"] == resources["requests"]
        assert ("nvidia.com/gpu" in resources["limits"]) == (group is workers)


STUBS = {
    "hostname": "echo 10.0.0.1 10.1.0.1",
    "srun": 'echo "srun $*" >> calls',
    "ray": 'echo "ray $*" >> calls; test -e up || { touch up; exit 1; }',  # the head answers the second time
    "sleep": "true",
    "python": 'case "$*" in *secrets*) echo token;; *ray.nodes*) test -e two || { touch two; echo 1; exit; }; echo 2;;'
    ' *) until [ $(grep -c ^srun calls) = $SLURM_JOB_NUM_NODES ]; do /bin/sleep 0.01; done; echo "python $*" >> calls;'
    " echo $PPID $RAY_AUTH_MODE $RAY_AUTH_TOKEN > driver;; esac",
}


@pytest.fixture
def submitted(tmp_path: Path) -> Path:
    """A folder from which a job is submitted, with programs that only write down how they were called."""
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "activate").write_text(f"PATH={programs}:$PATH\n")
    for name, text in STUBS.items():
        (programs / name).write_text(f"#!/bin/bash\n{text}\n")
        (programs / name).chmod(0o755)
    return tmp_path


@pytest.mark.parametrize("num_nodes", [1, 2])
def test_the_slurm_script_starts_the_nodes_and_becomes_the_driver(submitted: Path, num_nodes: int) -> None:
    slurm = {"SLURM_JOB_NUM_NODES": str(num_nodes), "SLURM_CPUS_PER_TASK": "8", "SLURMD_NODENAME": "n1"}
    command = ["bash", str(FILES / "slurm.sh"), "/shared/mine.yaml", "run_dir=/shared/runs/mine"]
    process = subprocess.Popen(command, cwd=submitted, env={**os.environ, **slurm})
    assert process.wait(60) == 0
    calls = (submitted / "calls").read_text().splitlines()
    starts = sorted(line for line in calls if line.startswith("srun"))
    common = "--cpus-per-task=8 {} ray start --block --disable-usage-stats --num-cpus=8"
    head = f"{common.format('--nodelist=n1')} --head --node-ip-address=10.0.0.1 --port=6379"
    worker = f"{common.format('--exclude=n1')} --address=10.0.0.1:6379"
    nodes = "srun --nodes=1 --ntasks=1"
    assert starts == sorted([f"{nodes} {head}", f"{nodes} {worker}"][:num_nodes])
    assert calls.count("ray health-check --address 10.0.0.1:6379") == 2
    driver = shlex.split(next(line for line in calls if line.startswith("python")))
    given = check_train(driver)
    assert given["resume_if_any"]
    assert list(given["overrides"]) == ["run_dir=/shared/runs/mine", "ray.address=10.0.0.1:6379"]
    # The driver is no child of the script: it took its place, so it gets the signal that Slurm sends to the script.
    assert (submitted / "driver").read_text().split() == [str(os.getpid()), "token", "token"]


def test_the_slurm_script_is_sound_and_is_signalled_before_its_time_is_over() -> None:
    text = (FILES / "slurm.sh").read_text()
    subprocess.run(["bash", "-n", str(FILES / "slurm.sh")], check=True, timeout=30)
    assert os.access(FILES / "slurm.sh", os.X_OK)
    options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", text, re.MULTILINE))
    assert options["signal"] == "B:TERM@600" and options["ntasks-per-node"] == "1"


def test_the_image_copies_what_is_there_and_installs_as_make_does() -> None:
    text = (FILES / "Dockerfile").read_text()
    steps = [line.split() for line in text.splitlines() if line.startswith(("FROM", "ARG", "COPY", "RUN"))]
    assert steps[0] == ["FROM", "python:3.11-bookworm"] and ["ARG", "LIST=cpu"] in steps
    copied = [name for step in steps if step[0] == "COPY" for name in step[1:-1]]
    assert all((ROOT / name).exists() for name in copied)
    packages = {"rl", "envs", "rewards", "sft"}
    assert packages | {"Makefile", "pyproject.toml", "requirements", "README.md"} <= set(copied)
    assert "make install LIST=${LIST}" in text and "--shm-size" in text
    assert all((ROOT / "requirements" / f"{name}.txt").exists() for name in ("cpu", "gpu"))
    assert re.search(r"^install:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_the_commands_and_keys_of_the_guides_are_known() -> None:
    guides = [(ROOT / "docs" / name).read_text() for name in ("clusters.md", "learner_ranks.md")]
    commands = [line for text in guides for line in re.findall(r"^ {4}.*?(python -m rl train .*)$", text, re.MULTILINE)]
    assert len(commands) >= 5
    for command in commands:
        check_train(shlex.split(command))
    shown = [block for text in guides for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]
    assert len(shown) == 2
    for sections in map(yaml.safe_load, shown):
        overrides = [f"{name}={yaml.safe_dump(keys, default_flow_style=True)}" for name, keys in sections.items()]
        load_config(ROOT / "experiments" / "quickstart.yaml", overrides)


def test_the_tests_that_a_guide_names_are_there() -> None:
    text = (ROOT / "docs" / "learner_ranks.md").read_text()
    tests = "".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    named = re.findall(r"`(test_\w+)`", text)
    assert len(named) >= 6
    assert all(f"def {name}(" in tests for name in named)
    assert all((ROOT / file).exists() for file in re.findall(r"`((?:tests|rl)/\w[\w/]*\.py)`", text))
