"""`rl doctor`: what each check says of a machine or an experiment that is broken, and of one that works."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from envs.sandbox import SandboxError
from rl import init
from rl.cluster import places
from rl.cluster.address import ClusterError
from rl.config.errors import ConfigError, Problem
from rl.config.read import dump_config, load_config
from rl.cpu_bfloat16 import has_quick_bfloat16
from rl.doctor import command, machine, one_step
from rl.doctor.findings import Check, Finding, exit_code, findings_of
from rl.doctor.machine import GIB
from rl.doctor.packages import PYTHON, package_findings, python_findings
from rl.doctor.prompt import prompt_findings
from tests.makers import ARITHMETIC, STORE, make_config, make_group, make_rollout, make_turn, make_update
from tests.test_rl_commands import run, yaml  # noqa: F401

Patch = pytest.MonkeyPatch
BUILT: dict[str, Any] = {"policy": {"build": {}}, "sft": {}}


def raising(error: BaseException) -> Any:
    def find() -> Iterator[Finding]:
        yield Finding("x", "ok", "before")
        raise error

    return find


def test_a_check_that_hangs_ends_at_its_deadline() -> None:
    (finding,) = findings_of(Check("disk", lambda: time.sleep(30) or [], 0.1))
    assert (finding.status, finding.found) == ("failed", "no answer within 0.1 s")


def test_errors_are_findings_with_a_remedy_and_what_came_before_is_kept() -> None:
    problems = [Problem("a.yaml, line 3", "seed", "is missing", "add it"), Problem("", "", "b", "c")]
    kept, first, second = findings_of(Check("x", raising(ConfigError(problems))))
    assert kept.found == "before"
    assert first == Finding("x", "failed", "a.yaml, line 3: seed: is missing", "add it", True)
    assert (second.found, second.fix) == ("b", "c")
    assert findings_of(Check("x", raising(ClusterError("no cluster; start one"))))[1:] == [
        Finding("x", "failed", "no cluster; start one")
    ]
    (_, bug) = findings_of(Check("x", raising(SystemExit("\ud800" + "y" * 9000))))
    assert bug.found.startswith("SystemExit: \ufffdyyy") and len(bug.found) < 4500


def test_a_long_error_keeps_its_beginning_and_its_end() -> None:
    (_, finding) = findings_of(Check("x", raising(ClusterError("no engine: " + "t" * 9000 + " out of memory"))))
    assert finding.found.startswith("no engine: ttt") and finding.found.endswith("ttt out of memory")
    assert "(3025 characters left out)" in finding.found


def test_exit_codes() -> None:
    ok, warning, failed = (Finding("x", status, "") for status in ("ok", "warning", "failed"))
    assert exit_code([ok, warning]) == 0
    assert exit_code([ok, failed]) == 1
    assert exit_code([failed, Finding("x", "failed", "", is_configuration=True)]) == 2


@pytest.fixture
def requirements(tmp_path: Path, monkeypatch: Patch) -> Path:
    """A pinned list of three packages, and a folder of installed ones."""
    folder, site = tmp_path / "requirements", tmp_path / "site"
    folder.mkdir()
    (folder / "cpu.in").write_text("-r common.in\nalpha-one==1.0\n")
    (folder / "common.in").write_text("# comment\nbeta<3\ngamma[all]\n# development\ndelta\n")
    (folder / "cpu.txt").write_text("# Written\nalpha-one==1.0+cpu\nbeta==2.0\ngamma==3.0\ndelta==4.0\n")
    (folder / "left_out.txt").write_text("# name: why\nvision: brings a build that breaks imports (cpu)\n")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", str(site))
    monkeypatch.setattr("rl.doctor.packages._installed", lambda name: None if name == "vllm" else installed(site, name))
    return folder


def installed(site: Path, name: str) -> str | None:
    path = site / f"{name}.version"
    return path.read_text() if path.exists() else None


def install(requirements: Path, **versions: str) -> None:
    site = requirements.parent / "site"
    site.mkdir(exist_ok=True)
    for name, version in versions.items():
        (site / f"{name.replace('_', '-')}.version").write_text(version)


def test_the_pinned_packages_are_compared(requirements: Path) -> None:
    install(requirements, alpha_one="1.0+cpu", beta="2.0", gamma="3.0")
    assert list(package_findings(requirements)) == [
        Finding("packages", "ok", "the 4 versions of requirements/cpu.txt")  # what only developers need may be missing
    ]
    install(requirements, beta="3.1", gamma="3.1")
    wrong, other = package_findings(requirements)
    assert (wrong.status, wrong.found) == ("failed", "wrong versions: beta 3.1 (needs <3)")
    assert (other.status, other.found) == ("warning", "not the tested versions: gamma 3.1 (tested: 3.0)")
    (requirements.parent / "site" / "alpha-one.version").unlink()
    missing, *_ = package_findings(requirements)
    assert (missing.status, missing.found, missing.fix) == ("failed", "missing: alpha-one", "make install")


@pytest.mark.parametrize(("code", "status"), [("", "warning"), ("raise RuntimeError('nms does not exist')", "failed")])
def test_a_package_that_is_left_out_is_told_and_fails_if_it_breaks_imports(
    code: str, status: str, requirements: Path
) -> None:
    install(requirements, alpha_one="1.0+cpu", beta="2.0", gamma="3.0", vision="0.9")
    (requirements.parent / "site" / "vision.py").write_text(code)
    _, vision = package_findings(requirements)
    assert vision.status == status
    assert vision.found.startswith("vision 0.9 is installed, which the list leaves out: brings a build that breaks")
    assert ("RuntimeError: nms does not exist" in vision.found, "pip uninstall vision" in vision.fix) == (
        bool(code),
    ) * 2


def test_without_its_folder_there_is_no_list_to_compare_with(tmp_path: Path) -> None:
    (finding,) = package_findings(tmp_path / "none")
    assert finding.status == "warning" and "no pinned list" in finding.found


@pytest.mark.slow
def test_a_package_that_cannot_be_imported_is_a_finding_of_the_command(repo: Path) -> None:
    program = "import sys; sys.modules['ray'] = None; sys.argv = ['rl', 'doctor', '--json']; import rl.__main__ as m; "
    done = subprocess.run(
        [sys.executable, "-c", program + "sys.exit(m.main())"], cwd=repo, capture_output=True, text=True, timeout=120
    )
    last = json.loads(done.stdout)["findings"][-1]
    assert done.returncode == 1
    assert (last["check"], last["status"], last["fix"]) == ("imports", "failed", "make install")
    assert "ModuleNotFoundError" in last["found"] and "ray" in last["found"]


def test_another_python_fails(monkeypatch: Patch, repo: Path) -> None:
    assert f'requires-python = "{PYTHON}"' in (repo / "pyproject.toml").read_text()
    (here,) = python_findings()
    assert here.status == "ok"
    monkeypatch.setattr(sys, "version_info", (3, 9, 1))
    (old,) = python_findings()
    assert (old.status, old.found) == ("failed", "3.9.1, and the pinned packages need >=3.11,<3.12")


def test_a_disk_without_room_or_rights_fails(tmp_path: Path, monkeypatch: Patch) -> None:
    config = make_config(tmp_path / "a" / "b", policy={"path": tmp_path}, train={"num_steps": 1, "keep_checkpoints": 1})
    monkeypatch.setattr(machine, "num_parameters", lambda folder: 2 * 10**9)
    (finding,) = machine.disk_findings(config)  # 2 checkpoints of 12 bytes a weight, and 1 GiB: 45.7 GiB
    free = SimpleNamespace(free=45 * GIB)
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda place: free)
    (finding,) = machine.disk_findings(config)
    assert (finding.status, finding.found) == (
        "failed",
        f"{tmp_path} has 45.0 GiB free, and the run needs about 45.7 GiB",
    )
    free.free = 46 * GIB
    assert [one.status for one in machine.disk_findings(config)] == ["ok"]
    monkeypatch.setattr(machine.os, "access", lambda place, mode: False)
    (finding,) = machine.disk_findings(config)
    assert (finding.status, finding.found) == ("failed", f"{tmp_path} cannot be written")


def test_little_memory_is_a_warning(monkeypatch: Patch) -> None:
    monkeypatch.setattr(machine.psutil, "virtual_memory", lambda: SimpleNamespace(available=9 * GIB))
    limits = {"memory.max": str(8 * GIB), "memory.current": str(5 * GIB)}
    monkeypatch.setattr(machine, "cgroup", lambda name: limits.get(name, ""))
    (finding,) = machine.memory_findings()
    assert (finding.status, finding.found) == ("warning", "3.0 GiB free; a tiny policy needs about 4 GiB")
    limits["memory.max"] = "max"
    (finding,) = machine.memory_findings()
    assert (finding.status, finding.found) == ("ok", "9.0 GiB free")
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda place: SimpleNamespace(free=64 * 2**20))
    (finding,) = machine.shared_memory_findings()
    assert finding.status == "warning" and "has 0.06 GiB free" in finding.found and "--shm-size" in finding.fix


def test_cores_are_those_of_the_container(monkeypatch: Patch) -> None:
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(places, "cgroup", lambda name: "150000 100000")
    assert places.num_cores() == 1.5
    (finding,) = machine.core_findings(make_config(rollout={"num_workers": 2}))
    assert (finding.status, finding.found) == ("warning", "1.5 CPU cores for this process, and the run reserves 3")
    monkeypatch.setattr(places, "cgroup", lambda name: "max 100000")
    assert [one.status for one in machine.core_findings(make_config())] == ["ok"]


def test_a_cpu_that_has_to_emulate_bfloat16_is_told(monkeypatch: Patch, tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    for flags, is_quick in (
        ("flags\t\t: fpu avx avx2 fma", False),
        ("flags\t\t: avx2 avx512bw", True),
        ("Features\t: fp asimd bf16", True),
        ("Features\t: fp asimd", False),
        ("model name: unknown", True),
    ):
        cpuinfo.write_text(f"processor\t: 0\n{flags}\n")
        assert has_quick_bfloat16(cpuinfo) is is_quick
    assert has_quick_bfloat16(tmp_path / "none")
    monkeypatch.setattr(machine, "has_quick_bfloat16", lambda: False)
    monkeypatch.setattr(machine, "num_cores", lambda: 64.0)
    (finding,) = machine.core_findings(make_config(precision="bf16"))
    assert finding.status == "warning" and "bfloat16" in finding.found and "precision: float32" in finding.fix
    for one in (make_config(), make_config(precision="bf16", learner={"gpus": 1}, rollout={"gpus_per_worker": 1})):
        assert [finding.status for finding in machine.core_findings(one)] == ["ok"]
    monkeypatch.setattr(init, "has_quick_bfloat16", lambda: False)
    assert init.first_experiment("first", "policy", [], 0)["precision"] == "float32"
    assert init.first_experiment("first", "policy", [], 1)["precision"] == "bf16"


@pytest.mark.parametrize(
    ("cards", "torch", "gpus", "status", "words"),
    [
        (None, None, 0, "ok", "none"),
        (None, None, 1, "failed", "none"),
        (
            "NVIDIA H100, 81559 MiB, 570.1",
            "1 13.0",
            1,
            "ok",
            "NVIDIA H100, 81559 MiB, driver 570.1; torch uses 1 of them",
        ),
        ("NVIDIA H100, 81559 MiB, 570.1", "0 none", 0, "warning", "torch (CUDA none) can use none of them"),
        ("NVIDIA H100, 81559 MiB, 570.1", None, 1, "failed", "torch (CUDA unknown) can use none"),
    ],
)
def test_gpus_are_named_with_memory_and_driver(
    cards: str | None, torch: str | None, gpus: int, status: str, words: str, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(machine, "_output", lambda program: cards if program[0] == "nvidia-smi" else torch)
    (finding,) = machine.gpu_findings(make_config(learner={"gpus": gpus}))
    assert finding.status == status and words in finding.found


def test_a_cluster_and_a_sandbox_that_do_not_work_fail(monkeypatch: Patch) -> None:
    config = make_config(ray={"address": "127.0.0.1:9"})
    checks = machine.machine_checks(config)
    (ray,) = findings_of(Check("Ray", checks["Ray"]))
    assert ray.status == "failed" and "no Ray cluster answers at '127.0.0.1:9'; start one" in ray.found

    def refuse() -> str:
        raise SandboxError("no sandbox of level restricted or above here")

    monkeypatch.setattr(machine, "level_here", refuse)
    (sandbox,) = findings_of(Check("sandbox", checks["sandbox"]))
    assert (sandbox.status, sandbox.found) == ("failed", "no sandbox of level restricted or above here")


def test_trackers_that_are_not_installed_are_named(monkeypatch: Patch) -> None:
    monkeypatch.setattr(machine, "is_installed", lambda package: package != "wandb")
    (finding,) = machine.sink_findings()
    assert finding.found == "jsonl, tensorboard, mlflow, trackio; not installed: wandb (wandb) (make trackers)"


def test_the_prompt_shows_what_was_recognised() -> None:
    (finding,) = prompt_findings(make_config(**BUILT, environments={STORE: {"budget": "off"}}))
    first, prompt = finding.found.split("\n", 1)
    assert first == f"has tools, has think block, writes calls in the style xml; a prompt of {STORE}:"
    assert prompt.startswith("<|im_start|>system\n") and prompt.endswith("<think></think>")


def test_the_small_step_is_short_and_keeps_what_decides_whether_it_runs(tmp_path: Path) -> None:
    environments = {ARITHMETIC: {"budget": {"off": 1, 7: 2, 400: 1}}, STORE: {"weight": 3}}
    rollout = {"max_reply_tokens": 480, "num_workers": 2, "max_in_flight": 3}
    whole = make_config("runs/x", **BUILT, environments=environments, rollout=rollout, precision="nvfp4")
    path = tmp_path / "experiment.yaml"
    path.write_text(dump_config(whole))
    small = load_config(path, one_step.small_step(whole, tmp_path / "run"))
    assert small.run_dir == tmp_path / "run"
    assert (small.train.num_steps, small.train.num_prompts, small.train.group_size) == (1, 2, 2)
    assert set(small.environments[ARITHMETIC].budget) == {"off", 7, 16}
    assert small.rollout.max_reply_tokens == 16 + 16 + 32  # reasoning, grace and answer
    assert small.sft is not None and (small.sft.num_steps, small.sft.num_conversations) == (1, 64)
    kept = {"precision", "policy", "learner", "loss", "weights", "budget", "canaries", "ray"}
    assert small.model_dump(include=kept) == whole.model_dump(include=kept)
    assert (small.rollout.num_workers, small.rollout.max_in_flight) == (2, 3)


@pytest.mark.parametrize(
    "sft",
    [
        {"num_epochs": 2},
        {"data": [{"path": "a.jsonl", "epochs": 2}, {"gold": True, "epochs": 1}]},
        {"data": [{"path": "a.jsonl", "epochs": 2}, {"gold": True, "weight": 1}], "num_epochs": 3},
    ],
)
def test_a_stage_of_epochs_is_one_step_too(tmp_path: Path, sft: dict[str, Any]) -> None:
    whole = make_config("runs/x", policy={"build": {}}, sft=sft)
    path = tmp_path / "experiment.yaml"
    path.write_text(dump_config(whole))
    small = load_config(path, one_step.small_step(whole, tmp_path / "run")).sft
    assert small is not None and (small.num_steps, small.num_epochs) == (1, None)
    assert whole.sft is not None
    assert [one.name for one in small.sources] == [one.name for one in whole.sft.sources]


@pytest.mark.parametrize(("mismatch", "status"), [(1.01, "ok"), (1.06, "warning"), (2.5, "failed"), (None, "warning")])
def test_a_mismatch_is_judged_by_the_canaries(mismatch: float | None, status: str) -> None:
    finding = one_step.learner_finding(make_config(), make_update(mismatch=mismatch))
    assert finding.status == status
    assert mismatch is None or f"mismatch between learner and engine {mismatch:.6f}" in finding.found


def test_rollouts_that_do_not_count_are_a_warning() -> None:
    turns = (make_turn(reply_ids=(5, 6, 7), forced=(1,)),)
    good = make_group([1.0, 0.0])
    assert one_step.engine_finding([good]) == Finding("engine step", "ok", "6 tokens sampled in 2 rollouts")
    bad = make_rollout(None, "env_error", turns=turns, error="KeyError: 'a'")
    group = type(good)("0-1", bad.task, (bad, make_rollout(1.0, turns=turns)))
    finding = one_step.engine_finding([group])
    assert finding.status == "warning"
    assert (
        finding.found == f"4 tokens sampled in 2 rollouts; 1 do not count, first {ARITHMETIC}: env_error: KeyError: 'a'"
    )


def test_a_wrong_experiment_ends_with_exit_code_2_and_starts_nothing(
    yaml: Path,  # noqa: F811
    monkeypatch: Patch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(machine, "machine_checks", lambda config: {})
    monkeypatch.setattr(command, "package_findings", lambda: iter(()))
    monkeypatch.setattr(one_step, "_run", lambda *arguments: pytest.fail("nothing may start"))
    assert run(monkeypatch, "doctor", yaml, "environments={math/Arithmatic-v0: {}}", "--json") == 2
    told = json.loads(capsys.readouterr().out)
    assert told["exit_code"] == 2
    failed = {one["check"]: one for one in told["findings"] if one["status"] == "failed"}
    assert "math/Arithmetic-v0" in failed["environments"]["fix"]
    assert [one["found"] for one in told["findings"][-3:]] == ["not tried, because of what failed before"] * 3
    assert run(monkeypatch, "doctor", yaml, "learner.learning_rat=1") == 2
    assert "did you mean learner.learning_rate" in capsys.readouterr().err
    assert list(yaml.parent.iterdir()) == [yaml]
