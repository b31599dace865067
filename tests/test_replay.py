"""An asynchronous run that was killed and resumed is repeated bit for bit; the two halves of a run."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs.json_lines import read_lines
from rl.data_types import Group
from rl.engine.record import tokens_hash
from rl.runs.folder import RunFolder
from rl.runs.saved_rollouts import load_rollouts, write_rollouts
from rl.tokens import Tokens
from tests.test_benchmarks import run_short
from tests.test_train import START_TIMEOUT_S, run, state_of, steps, without_time

# The first test also waits for the fixture's six starts of a run.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the benchmark's runs: one of which a worker, the learner and the driver were killed, and its
    repetition.
    """
    folder = tmp_path_factory.mktemp("replay")
    report = run_short("replay", folder, "--runs", str(folder / "runs"))
    (folder / "runs" / "report.json").write_text(json.dumps(report))
    return folder / "runs"


@pytest.fixture(scope="module")
def yaml(runs: Path) -> Path:
    """The experiment of that run, on a policy that calls tools and replies at length."""
    return runs / "experiment.yaml"


@pytest.fixture(scope="module")
def recorded(runs: Path) -> Path:
    return runs / "repaired" / "run"


def replay(run_dir: Path, out: Path, *more: str) -> tuple[int, str]:
    """Exit code and output."""
    command = [sys.executable, "-m", "rl", "train", "--replay", str(run_dir), f"run_dir={out}", *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=2 * START_TIMEOUT_S, check=False)
    return done.returncode, done.stdout[-3000:] + done.stderr[-3000:]


def rollouts(run_dir: Path) -> dict[str, list[dict[str, Any]]]:
    """Everything that was saved of the rollouts, but for their seconds."""
    saved = {path.name: path.read_text().splitlines() for path in (run_dir / "rollouts").glob("*.jsonl")}
    return {name: [json.loads(line) | {"seconds": 0} for line in lines] for name, lines in saved.items()}


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    """What a clock says is left out, and how many groups were in flight, which follows it."""
    return [line | {"groups_in_flight": 0} for line in without_time(steps(run_dir))]


def check_equal(run_dir: Path, again: Path) -> None:
    assert rollouts(again) == rollouts(run_dir)
    assert metrics(again) == metrics(run_dir)
    assert state_of(again) == state_of(run_dir)


def test_a_run_with_tools_in_processes_whose_parts_were_killed_is_repeated_bit_for_bit(
    runs: Path, recorded: Path
) -> None:
    report = json.loads((runs / "report.json").read_text())
    raw, summary = report["raw"]["repaired"], report["summary"]["repaired"]
    assert raw["codes"] == [-9, 0] and [one["code"] for one in raw["replays"]] == [0], raw
    assert summary["rollouts_of_several_turns"] and summary["replies_across_a_publish"]
    assert summary["equal_replays"] == summary["replays"] == 1
    assert summary["replaced_workers"] == 1
    begun = [next(read_lines(folder / "loop.jsonl")) for folder in sorted((recorded / "record").glob("*"))]
    assert [line["again"] for line in begun] == [False, True, False]
    assert begun[0]["step"] == 0 < begun[1]["step"] <= begun[2]["step"]
    check_equal(recorded, runs / "repaired" / "replay_0" / "run")


def test_the_first_token_that_differs_is_told_at_once_and_the_exit_code_says_so(recorded: Path, tmp_path: Path) -> None:
    """One token of the record is another than the recorded run sampled."""
    changed = tmp_path / "recorded"
    shutil.copytree(recorded, changed, ignore=shutil.ignore_patterns("checkpoints", "replay"))
    file = RunFolder(changed).rollouts_files("train")[1]
    played = list(load_rollouts(file))
    number, old = max(enumerate(played), key=lambda one: len(one[1].turns))
    reply = old.turns[-1].reply
    place, columns = len(reply.ids) // 2, {name: reply.columns[name] for name in ("logprob", "version")}
    other = Tokens.make(reply.ids + (np.arange(len(reply.ids)) == place), reply.sampled, reply.columns)
    played[number] = replace(old, turns=(*old.turns[:-1], replace(old.turns[-1], reply=other)))
    with file.open("w") as text:
        write_rollouts(text, 1, "train", [Group(one.group_id, one.task, (one,)) for one in played])
    name = f"{old.group_id}/{old.member}/{old.num_attempts}/{len(old.turns) - 1}"
    sampled, told = (
        f'"{name}":"{tokens_hash(ids, columns["logprob"], columns["version"])}"' for ids in (reply.ids, other.ids)
    )
    ((record, line),) = [
        (record, line)
        for record in (changed / "record" / "0001").glob("engine_*.jsonl")
        for line in record.read_text().splitlines()
        if sampled in line
    ]
    record.write_text(record.read_text().replace(sampled, told))
    code, output = replay(changed, tmp_path / "again")
    assert code == 4
    value = f"logprob {columns['logprob'][place]!s}, version {columns['version'][place]}"
    values = f"recorded id {reply.ids[place] + 1}, {value}, now id {reply.ids[place]}, {value}"
    where = f"group {old.group_id}, member {old.member}, turn {len(old.turns) - 1}, token {place}"
    ended = f"the reply ended in step {json.loads(line)['step']} of the engine of worker {record.stem.split('_')[1]}"
    assert f"the replay differs from its recording: {where}: {values}; {ended}" in " ".join(output.split())
    kinds = {line["kind"] for line in read_lines(tmp_path / "again" / "record" / "0001" / "loop.jsonl")}
    assert "update" not in kinds


EVERYTHING = """
seed: 3
policy: {{path: {policy}, max_tokens: 512}}
precision: nvfp4
teachers: {{one: {{path: {policy}}}}}
environments:
  math/Arithmetic-v0:
    loss: {{algorithm: mopd, teacher: one}}
    curriculum: {{profile: {profile}, num_steps: 2}}
  tools/Store-v0: {{process: true, budget: {{8: 1, unlimited: 1}}, budget_curriculum: {{num_steps: 2}}}}
train: {{num_steps: 3, num_prompts: 2, group_size: 2, max_staleness: 1}}
learner: {{adapter: {{rank: 4, alpha: 8}}}}
evaluation: {{num_tasks: 1, every: 2}}
rollout: {{max_reply_tokens: 64, max_in_flight: 2, lockstep_steps: 4, kv_cache_gib: 0.1}}
ray: {{address: local}}
"""


def test_teachers_adapters_curricula_budgets_and_formats_are_repeated(runs: Path, tmp_path: Path) -> None:
    policy, profile = runs / "supervised" / "sft", tmp_path / "profile.jsonl"
    task = {"env_id": "math/Arithmetic-v0", "split": "train", "options": {}, "kind": "mixed"}
    profile.write_text("".join(json.dumps({**task, "seed": one, "pass_rate": one / 8}) + "\n" for one in range(8)))
    yaml = tmp_path / "experiment.yaml"
    yaml.write_text(EVERYTHING.format(policy=policy, profile=profile))
    run(yaml, tmp_path / "run")
    code, output = replay(tmp_path / "run", tmp_path / "again")
    assert code == 0, output
    check_equal(tmp_path / "run", tmp_path / "again")


def test_the_rollouts_of_a_run_train_the_same_weights_without_engines(
    yaml: Path, recorded: Path, tmp_path: Path
) -> None:
    run(yaml, tmp_path / "run", "--rollouts-from", str(recorded))
    trained, before = (state_of(one) | {"ledger": ""} for one in (tmp_path / "run", recorded))
    assert trained == before  # but for groups that were in flight at the end
    assert '"evaluation"' not in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_rollouts_that_were_only_played_are_trained_on(yaml: Path, tmp_path: Path) -> None:
    played = tmp_path / "played"
    options = ("train.num_steps=2", "precision=nvfp4", "learner.routing_replay=true")
    run(yaml, played, "--only-rollouts", *options)
    assert [line["step"] for line in steps(played)] == [1, 2]
    versions = {
        version
        for path in (played / "rollouts").glob("train_*")
        for rollout in load_rollouts(path)
        for turn in rollout.turns
        for version in turn.reply.columns["version"].tolist()
    }
    assert versions == {0}
    run(yaml, tmp_path / "run", "--rollouts-from", str(played), *options)
    assert rollouts(tmp_path / "run") == rollouts(played)
    first = steps(tmp_path / "run")[0]
    assert first["update/mismatch"] < 1.05
    assert first["update/routes_known"] > 0.9 and first["update/route_mismatch"] < 0.05
