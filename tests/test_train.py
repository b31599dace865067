"""The whole command, as a user runs it: it trains, is killed, stopped and resumed, and leaves nothing behind."""

import contextlib
import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from rl.runs.checkpoint import latest_checkpoint
from rl.runs.saved_rollouts import load_rollouts

pytestmark = pytest.mark.slow

YAML = """
seed: 3
policy: {{path: {policy}}}
environments:
  math/Arithmetic-v0: {{}}
  tools/Store-v0: {{}}
train: {{num_steps: 4, num_prompts: 2, group_size: 3, checkpoint_every: 1}}
evaluation: {{num_tasks: 2}}
rollout: {{max_in_flight: 8, kv_cache_gib: 0.1}}
ray: {{address: local}}
"""
START_TIMEOUT_S = 240


@pytest.fixture(scope="module")
def yaml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment on a policy that had a few supervised steps."""
    folder = tmp_path_factory.mktemp("experiment")
    supervised = folder / "supervised.yaml"
    supervised.write_text(
        f"run_dir: {folder}/run\nseed: 3\npolicy: {{build: {{}}}}\ntrain: {{num_steps: 1}}\n"
        "environments: {math/Arithmetic-v0: {}, tools/Store-v0: {}}\n"
        "sft: {num_steps: 30, num_conversations: 600, batch_size: 16}\n"
    )
    subprocess.run([sys.executable, "-m", "sft", "train", str(supervised)], check=True, timeout=START_TIMEOUT_S)
    path = folder / "experiment.yaml"
    path.write_text(YAML.format(policy=folder / "run" / "sft"))
    return path


def command(yaml: Path, run_dir: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "rl", "train", str(yaml), f"run_dir={run_dir}", *more]


def run(yaml: Path, run_dir: Path, *more: str) -> None:
    done = subprocess.run(
        command(yaml, run_dir, *more), capture_output=True, text=True, timeout=2 * START_TIMEOUT_S, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def interrupted(
    yaml: Path,
    run_dir: Path,
    number: int,
    when: Callable[[], bool],
    *more: str,
    send: Callable[[int, int], None] = os.kill,
) -> tuple[int, list[psutil.Process]]:
    """Start the run and signal it when the condition holds; its exit code, and the processes that it had started.

    The run has a process group of its own, as a command of a shell has.
    """
    process = subprocess.Popen(
        command(yaml, run_dir, *more), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, process_group=0
    )
    deadline = time.monotonic() + START_TIMEOUT_S
    while not when() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    assert process.poll() is None, "the run ended before it could be interrupted"
    family = psutil.Process(process.pid).children(recursive=True)
    send(process.pid, number)
    process.wait(timeout=60)
    return process.returncode, family


def to_group(driver: int, number: int) -> None:
    """Signal the process group of the driver, as Ctrl-C and `timeout` do. The driver is the last to hear it."""
    os.kill(driver, signal.SIGSTOP)
    os.killpg(driver, number)
    time.sleep(5)
    os.kill(driver, signal.SIGCONT)


@pytest.fixture(scope="module")
def killed() -> Iterator[list[psutil.Process]]:
    """Processes of runs that were killed. They are looked for after all tests: some take a minute to notice."""
    family: list[psutil.Process] = []
    yield family
    assert left_of(family) == []


def left_of(family: list[psutil.Process]) -> list[psutil.Process]:
    """Those that do not end by themselves. Ray's agents notice within a minute that their raylet was killed."""
    _, left = psutil.wait_procs(family, timeout=120)
    return left


def steps(run_dir: Path) -> list[dict[str, Any]]:
    metrics = run_dir / "metrics.jsonl"
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    return [line for line in map(json.loads, lines) if line["kind"] == "train"]


def notes(run_dir: Path) -> list[str]:
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [line["text"] for line in lines if line["kind"] == "note"]


def abandoned_weights() -> set[Path]:
    """Those of processes that live no more; other tests may run beside this one."""
    left = set()
    for folder in Path("/dev/shm").glob("polygym-weights-*"):
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(folder, os.O_RDONLY)
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                left.add(folder)
            os.close(descriptor)
    return left


def state_of(run_dir: Path) -> dict[str, str]:
    """Hashes of everything that the newest checkpoint holds of the learner, and its ledger."""
    checkpoint = latest_checkpoint(run_dir / "checkpoints")
    assert checkpoint is not None
    files = sorted(path for path in checkpoint.learner.rglob("*") if path.is_file())
    hashes = {
        str(path.relative_to(checkpoint.learner)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }
    return {**hashes, "step": str(checkpoint.step), "ledger": json.dumps(checkpoint.state["ledger"])}


def trained_ordinals(run_dir: Path) -> list[int]:
    """The ordinals of all groups that were trained, one entry a group."""
    ordinals = []
    for path in sorted((run_dir / "rollouts").glob("train_*.jsonl")):
        rollouts = [json.loads(line) for line in path.read_text().splitlines()]
        ordinals += sorted({rollout["task"]["ordinal"] for rollout in rollouts})
    return ordinals


def without_time(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Metrics that a repetition must reproduce: all but what a clock says, and memory."""
    clocks = ("time", "seconds", "share/", "working/", "tokens_per_s/", "update/seconds", "memory_mib/")
    return [{name: value for name, value in line.items() if not name.startswith(clocks)} for line in lines]


@pytest.fixture(scope="module")
def undisturbed(yaml: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    run(yaml, run_dir)
    return run_dir


def test_a_run_writes_all_that_it_promises(undisturbed: Path) -> None:
    names = {path.name for path in undisturbed.iterdir()}
    assert {"config.yaml", "versions.json", "metrics.jsonl", "tensorboard", "rollouts", "checkpoints"} <= names
    assert "report.html" in names
    assert [line["step"] for line in steps(undisturbed)] == [1, 2, 3, 4]
    assert trained_ordinals(undisturbed) == list(range(8))
    for line in steps(undisturbed):
        assert line["update/mismatch"] < 1.001


def test_the_engine_serves_each_update_at_once(undisturbed: Path) -> None:
    for step in range(1, 5):
        path = undisturbed / "rollouts" / f"train_{step:06d}.jsonl"
        for rollout in load_rollouts(path):
            versions = [turn.reply.columns["version"].tolist() for turn in rollout.turns]
            assert set().union(*versions) == {step - 1}


@pytest.mark.parametrize(("step", "checkpoint_every"), [(1, 1), (3, 2)])
def test_a_killed_run_that_is_resumed_equals_the_undisturbed_one_bit_for_bit(
    step: int, checkpoint_every: int, yaml: Path, undisturbed: Path, killed: list[psutil.Process], tmp_path: Path
) -> None:
    """Right after a checkpoint, and after a step that the newest checkpoint does not hold and that is trained again."""
    run_dir = tmp_path / "run"
    more = (f"train.checkpoint_every={checkpoint_every}",)
    code, family = interrupted(yaml, run_dir, signal.SIGKILL, lambda: len(steps(run_dir)) >= step, *more)
    killed += family
    assert code == -signal.SIGKILL
    run(yaml, run_dir, *more, "--resume")
    assert state_of(run_dir) == state_of(undisturbed)
    assert without_time(steps(run_dir)) == without_time(steps(undisturbed))
    assert trained_ordinals(run_dir) == list(range(8))


@pytest.mark.parametrize(
    ("number", "code", "send"),
    [(signal.SIGTERM, 143, os.kill), (signal.SIGTERM, 143, to_group), (signal.SIGINT, 130, to_group)],
)
def test_a_stopped_run_leaves_a_checkpoint_no_process_and_a_truthful_exit_code(
    number: int, code: int, send: Callable[[int, int], None], yaml: Path, tmp_path: Path
) -> None:
    run_dir, before = tmp_path / "run", abandoned_weights()
    more = ("train.num_steps=500", "train.checkpoint_every=400")
    returned, family = interrupted(yaml, run_dir, number, lambda: len(steps(run_dir)) >= 2, *more, send=send)
    assert (returned, left_of(family)) == (code, [])
    checkpoint = latest_checkpoint(run_dir / "checkpoints")
    assert checkpoint is not None and checkpoint.step == len(steps(run_dir))
    assert abandoned_weights() <= before
    if send is to_group:
        last = checkpoint.step + 1
        run(yaml, run_dir, f"train.num_steps={last}", "train.checkpoint_every=400", "--resume")
        assert [line["step"] for line in steps(run_dir)] == list(range(1, last + 1))


def test_a_run_that_paused_and_went_on_equals_the_undisturbed_one_bit_for_bit(
    yaml: Path, undisturbed: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    paused = run_dir / "paused"

    def is_paused() -> bool:
        if len(steps(run_dir)) == 1:
            paused.touch()
        return paused.exists() and "paused with engines" in (run_dir / "metrics.jsonl").read_text()

    code, family = interrupted(yaml, run_dir, signal.SIGUSR1, is_paused)
    assert (code, left_of(family), paused.exists()) == (0, [], False)
    assert state_of(run_dir) == state_of(undisturbed)
    assert without_time(steps(run_dir)) == without_time(steps(undisturbed))
    assert any("seconds/paused" in line for line in steps(run_dir))


def test_an_asynchronous_run_that_is_killed_trains_every_task_exactly_once(
    yaml: Path, killed: list[psutil.Process], tmp_path: Path
) -> None:
    """The groups of step 6 ended before its update, so none is newer than the checkpoint of step 5."""
    run_dir = tmp_path / "run"
    more = ("train.max_staleness=2", "train.num_steps=10", "train.checkpoint_every=5")
    _, family = interrupted(yaml, run_dir, signal.SIGKILL, lambda: len(steps(run_dir)) >= 6, *more)
    killed += family
    rollouts = run_dir / "rollouts" / "train_000006.jsonl"
    trained = rollouts.read_text()
    run(yaml, run_dir, *more, "--resume")
    assert trained_ordinals(run_dir) == list(range(20))
    assert all(line["staleness_max"] <= 2 for line in steps(run_dir))
    assert rollouts.read_text() == trained  # clocks included: they were not played again
    assert any("finished groups that are not played again: " in note for note in notes(run_dir))


def test_a_quantised_policy_trains_with_thinking_budgets(yaml: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    budgets = "environments.math/Arithmetic-v0.budget={off: 1, 4: 2, unlimited: 1}"
    run(yaml, run_dir, "precision=nvfp4", budgets, "budget.grace_tokens=2", "train.num_steps=2", "train.num_prompts=8")
    paths = sorted((run_dir / "rollouts").glob("train_*.jsonl"))
    rollouts = [rollout for path in paths for rollout in load_rollouts(path)]
    assert {rollout.task.budget for rollout in rollouts} == {"off", 4, "unlimited"}
    hits = [rollout for rollout in rollouts if any(turn.num_forced for turn in rollout.turns)]
    assert hits and {rollout.task.budget for rollout in hits} == {4}
    for line in steps(run_dir):
        assert line["budget_violations"] == 0
        assert 0 < line["update/codes_changed"] < 0.5
        assert line["update/mismatch"] < 1.05
    assert steps(run_dir)[0]["outcome/budget_hit"] + steps(run_dir)[1]["outcome/budget_hit"] > 0


def python(*arguments: Any, **settings: str) -> None:
    command = [sys.executable, "-m", *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=2 * START_TIMEOUT_S, env={**os.environ, **settings}
    )
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-4000:]}"


def test_a_new_package_trains_beside_tasks_that_a_profile_of_the_policy_chose(
    yaml: Path, tmp_path: Path, new_package: Path
) -> None:
    site, played, profile = tmp_path / "site", tmp_path / "played.jsonl", tmp_path / "profile.jsonl"
    python("pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", site, new_package)
    policy = yaml.parent / "run" / "sft"
    sizes = ("-n", 6, "-k", 4, "--max-tokens", 48)
    python("envs", "eval", "math/Arithmetic-v0", "--policy", policy, "--split", "train", *sizes, "--out", played)
    python("envs", "profile", played, "--out", profile)
    profiled = [json.loads(line) for line in profile.read_text().splitlines()]
    assert {task["num_tries"] for task in profiled} == {4} and len(profiled) == 6
    environments = {
        "math/Arithmetic-v0": {"curriculum": {"profile": str(profile), "num_steps": 2}},
        "my/WordGame-v0": {},
    }
    run_dir = tmp_path / "run"
    overrides = [
        "train.num_steps=2",
        "train.num_prompts=3",
        f"environments={json.dumps(environments)}",
        f"run_dir={run_dir}",
    ]
    python("rl", "train", yaml, *overrides, PYTHONPATH=str(site))
    assert all("reward/my/WordGame-v0" in step for step in steps(run_dir))
    lines = [line for path in (run_dir / "rollouts").glob("train_*") for line in path.read_text().splitlines()]
    trained = [json.loads(line) for line in lines]
    chosen = {one["task"]["seed"] for one in trained if one["task"]["env_id"] == "math/Arithmetic-v0"}
    assert chosen and chosen <= {task["seed"] for task in profiled if task["pass_rate"] < 1}


def test_bad_environments_cost_their_own_episodes_only(yaml: Path, tmp_path: Path) -> None:
    kinds = {
        "Crashes": "env_error",
        "Exits": "env_error",
        "Hangs": "env_timeout",
        "LeaksThreads": "ok",
        "FloodsMessages": "env_error",
        "FloodsOutput": "ok",
        "WrongTypes": "env_error",
        "KillsItsWorker": "ok",
    }
    environments = {f"tests.bad_envs:{kind}": {} for kind in kinds}
    environments["tests.bad_envs:KillsItsWorker"] = {"options": {"marker": str(tmp_path / "killed")}}
    run_dir = tmp_path / "run"
    overrides = [
        f"environments={json.dumps(environments)}",
        f"run_dir={run_dir}",
        "train={num_steps: 2, num_prompts: 10, group_size: 2}",
        "rollout.step_timeout_s=2",
        "canaries.masked_rows.stop=null",
        "evaluation.num_tasks=1",
    ]
    python("rl", "train", yaml, *overrides)
    assert (tmp_path / "killed").exists()
    for step in steps(run_dir):
        for kind, outcome in kinds.items():
            name = f"outcome/tests.bad_envs:{kind}/"
            counts = {key.removeprefix(name): value for key, value in step.items() if key.startswith(name) and value}
            expected = {outcome} if outcome != "ok" else {"ok", "truncated"}
            assert counts and counts.keys() <= expected, (kind, counts)
        for env_id in ("math/Arithmetic-v0", "tools/Store-v0"):
            assert f"reward/{env_id}" in step
