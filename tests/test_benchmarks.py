"""Every benchmark runs as its README says, in its short form, and hands over finite figures. None of them is judged."""

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.adapter import WAYS
from benchmarks.computing import Form as ComputingForm
from benchmarks.computing import summarised as computing_summary
from benchmarks.data_path import SharedMemory, experiment, make_group, summarised
from benchmarks.episodes import ROOT as REPO
from benchmarks.episodes import SIDES, missing_sides
from benchmarks.episodes import summary as episodes_summary
from benchmarks.gpu import WAYS as GPU_WAYS
from benchmarks.gpu import on_device
from benchmarks.node_figures import compared
from benchmarks.random_policies import active_weights, random_policies
from benchmarks.ranks import LEARNERS
from benchmarks.waiting_ideal import A, B, Simulation, Speeds
from benchmarks.waiting_ideal import Group as WaitingGroup
from rl.data_types import Group
from rl.learner.batching import make_batches
from rl.learner.samples import make_samples
from rl.policies import convert_smollm2

NEEDED_ON_BOTH_SIDES = {"tokens_per_s", "tokens_per_s_by_turn", "seconds_per_step", "tokens_per_step", "peak_gib"}


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its first two layers: a CPU without instructions for bfloat16 needs minutes for a pass of all thirty."""
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("policy") / "smollm2-135m"
    convert_smollm2(folder)
    AutoModelForCausalLM.from_pretrained(folder, num_hidden_layers=2).save_pretrained(folder)
    return folder


def run_short(name: str, folder: Path, *options: str) -> dict[str, Any]:
    """What the benchmark wrote; its folder did not exist. The summary must be what it printed last."""
    out = folder / "results" / f"{name}.json"
    command = [sys.executable, "-m", f"benchmarks.{name}", "--out", str(out), "--short", *options]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    report = json.loads(out.read_text())
    assert done.stdout.endswith(json.dumps(report["summary"], indent=2) + "\n")
    assert all(math.isfinite(figure) for figure in numbers(report["summary"]))
    return report


def numbers(value: Any) -> Iterator[float]:
    """Every figure of a summary, at least one in each of its parts."""
    if isinstance(value, int | float):
        yield value
        return
    assert value and isinstance(value, dict | list), f"no figures: {value!r}"
    for part in value.values() if isinstance(value, dict) else value:
        yield from numbers(part)


def test_every_benchmark_is_described_and_tested() -> None:
    modules = {path.stem for path in (REPO / "benchmarks").glob("*.py") if "typer.run(main)" in path.read_text()}
    started_by_another = {"trl_side", "trl_stage"}
    readme = (REPO / "benchmarks/README.md").read_text()
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    for name in modules - started_by_another:
        assert f"## `{name}`" in readme
        assert f"-m benchmarks.{name} --out" in readme
        assert f'run_short("{name}"' in tests


@pytest.mark.slow
def test_data_path_measures_both_sizes(tmp_path: Path) -> None:
    report = run_short("data_path", tmp_path)
    assert report["summary"].keys() == {"8192_reply_tokens", "1024_reply_tokens", "128_reply_tokens"}
    for figures in report["summary"].values():
        parts = {"groups_ns", "samples_ns", "to_learner_ns"}
        assert figures.keys() == {*parts, "total_ns", "rollout_lines_ns"}
        assert figures["total_ns"] == pytest.approx(sum(figures[name] for name in parts))


def test_data_path_moves_what_a_step_has_and_trains_all_of_it() -> None:
    groups = [make_group(ordinal, num_reply_tokens=128) for ordinal in range(3)]
    config, memory = experiment(128), SharedMemory(3 * 8 * (256 + 128))
    memory.put(groups)
    moved: list[Group] = memory.get()
    assert moved == groups
    samples = make_samples(moved, config.algorithm_of)
    assert [len(sample.tokens) for sample in samples] == [256 + 128] * 24
    batches = make_batches(samples, config.learner.tokens_per_micro_batch, 0)
    assert [tuple(batch.token_ids_BT.shape) for batch in batches] == [(8, 384)] * 3
    assert batches[0].num_loss_tokens == 24 * 128


def test_data_path_takes_the_best_repetition_of_each_part_and_adds_up_stages() -> None:
    raw = {
        "pickle_groups": [3.0, 2.0],
        "load_groups": [1.0, 4.0],
        "samples": [5.0, 6.0],
        "pickle_samples": [0.5, 0.25],
        "load_samples": [0.125, 0.5],
        "batch": [8.0, 7.0],
        "rollout_lines": [90.0, 80.0],
    }
    assert summarised(raw) == {
        "groups_ns": 3.0,
        "samples_ns": 5.0,
        "to_learner_ns": 7.375,
        "total_ns": 15.375,
        "rollout_lines_ns": 80.0,
    }


@pytest.mark.slow
def test_publishing_measures_each_transport_on_one_and_two_nodes(tmp_path: Path) -> None:
    report = run_short("publishing", tmp_path)
    places = ("one_node", "two_nodes", "two_on_each_node")
    ways = ("shared_memory_one_node", *(f"object_store_{where}" for where in places))
    assert report["summary"].keys() == report["raw"].keys() == {f"small_{way}_ms" for way in ways}
    assert all(len(figures) == 2 for figures in report["raw"].values())


@pytest.mark.slow
def test_environments_measures_episodes_programs_and_checks(tmp_path: Path) -> None:
    report = run_short("environments", tmp_path)
    assert report["summary"].keys() == {*report["raw"], "peak_gib"}
    assert report["sandbox_level"]


@pytest.mark.slow
def test_computing_measures_threads_and_processes(tmp_path: Path) -> None:
    report = run_short("computing", tmp_path)
    assert report["raw"].keys() == {"nothing", "threads", "processes"}
    assert all(len(steps) == 2 for steps in report["raw"].values())


def test_computing_spreads_all_work_over_all_cores() -> None:
    raw = {"nothing": [9.0, 1.0, 3.0], "threads": [9.0, 20.0, 20.0], "processes": [9.0, 6.0, 6.0]}
    assert computing_summary(raw, ComputingForm(3, 4, 2, cpu_s=1.0), num_cores=2) == {
        "nothing_s": 2.0,
        "threads_s": 20.0,
        "processes_s": 6.0,
        "ideal_s": 5.0,  # (2 + 4 * 2 * 1) / 2
        "threads_by_ideal": 4.0,
        "processes_by_ideal": 1.2,
    }


@pytest.mark.slow
def test_waiting_measures_each_bound_beside_its_ideal(tmp_path: Path) -> None:
    report = run_short("waiting", tmp_path, "--runs", str(tmp_path / "runs"))
    assert report["summary"].keys() == {"bound_0", "long_prompts_bound_1"}
    assert report["raw"]["seed_0_bound_0"]["age"] == 0


def test_the_ideal_of_a_waiting_run_is_what_a_hand_counts() -> None:
    """Updates take 5 s; the third group waits 10 s, so with a bound of 1 the fourth and the learner wait for it."""
    groups: list[WaitingGroup] = [[[(1, 2.0)]], [[(1, 2.0)]], [[(1, 10.0)]], [[(1, 2.0)]]]
    ends = {
        bound: Simulation(groups, 1, bound, Speeds(token_s=0.0, update_s=5.0)).run().step_ends for bound in (0, 1, 3)
    }
    assert ends[0] == [7.0, 14.0, 29.0, 36.0]  # 2 + 5, 2 + 5, 10 + 5, 2 + 5
    assert ends[1] == [7.0, 12.0, 22.0, 27.0]  # the third begins at 7, when the first is trained: 17, then 5 + 5
    assert ends[3] == [7.0, 12.0, 17.0, 22.0]
    # A turn of 3 tokens, then one of 1; the engine takes A + B seconds a token of one request.
    slow = Simulation([[[(3, 1.0), (1, 0.0)]]], 1, 0, Speeds(token_s=1.0, update_s=5.0)).run()
    assert slow.engine_s == pytest.approx(4 * (A + B))
    assert slow.step_ends == pytest.approx([4 * (A + B) + 1.0 + 5.0])


@pytest.mark.slow
def test_the_fleet_keeps_the_bound_of_the_staleness(tmp_path: Path) -> None:
    report = run_short("fleet", tmp_path)
    assert report["summary"]["age_max"] == report["summary"]["age_bound"] == 1
    assert report["settings"]["in_flight"] == 4 * 2 * 8
    assert len(report["raw"]["cpu_s"]) == 3


@pytest.mark.slow
def test_long_run_reads_the_memory_of_every_process(tmp_path: Path) -> None:
    summary = run_short("long_run", tmp_path)["summary"]
    assert summary["steps"] > 1 and summary["exit_code"] == 130
    assert {"driver", "learner", "worker", "raylet", "gcs"} <= summary["mib"].keys()


@pytest.mark.slow
def test_pipeline_measures_every_part(tmp_path: Path) -> None:
    summary = run_short("pipeline", tmp_path)["summary"]
    assert {"supervised_tokens_per_s", "sampled_tokens_per_s", "with_budget_by_without", "publish_s"} <= summary.keys()


@pytest.mark.slow
def test_gpu_measures_every_part_on_a_cpu_too(tmp_path: Path) -> None:
    report = run_short("gpu", tmp_path)
    ways = on_device(GPU_WAYS, torch.device("cpu"))
    parts = {f"learner {name} {way}" for name in random_policies(short=True) for way in ways}
    parts |= {f"sharing {name}" for name in random_policies(short=True)}
    assert report["summary"].keys() == {"card", "nvfp4", "engine", "failed_parts"} | parts, report["errors"]


def test_experts_that_a_token_does_not_choose_do_not_count() -> None:
    config = random_policies(short=True)["hybrid"]
    model = AutoModelForCausalLM.from_config(config)
    sizes = {name: weight.numel() for name, weight in model.named_parameters()}
    experts = sum(size for name, size in sizes.items() if ".experts." in name)
    embeddings = config.vocab_size * config.hidden_size
    share = config.num_experts_per_tok / config.n_routed_experts
    assert active_weights(model) == sum(sizes.values()) - embeddings - experts * (1 - share)


@pytest.mark.slow
def test_episodes_plays_every_side_that_is_installed(tmp_path: Path) -> None:
    report = run_short("episodes", tmp_path)
    assert report["left_out"].keys() <= {"skyrl"}
    played = [side for side in SIDES if side not in report["left_out"]]
    assert list(report["raw"]) == played
    assert {f"{side}_ms" for side in played} | {"polygym_by_trl"} <= report["summary"].keys()


def test_episodes_says_which_package_is_missing_and_sums_up_the_other_sides(tmp_path: Path) -> None:
    assert "make adapters" in missing_sides(tmp_path)["skyrl"]
    (tmp_path / "skyrl_gym").mkdir()
    (tmp_path / "skyrl_gym" / "__init__.py").touch()
    assert missing_sides(tmp_path) == {}
    raw = {"polygym": [[1.0, 3.0], [2.0]], "trl": [[4.0]], "polygym_environment": [[0.5]]}
    figures = {"polygym_ms": 2.0, "trl_ms": 4.0, "polygym_environment_ms": 0.5, "polygym_by_trl": 0.5}
    assert episodes_summary(raw) == figures
    assert episodes_summary({**raw, "skyrl": [[0.25]]}) == {
        **figures,
        "skyrl_ms": 0.25,
        "polygym_environment_by_skyrl": 2.0,
    }


@pytest.mark.slow
def test_matched_forward_compares_every_pair(tmp_path: Path, smollm2: Path) -> None:
    summary = run_short("matched_forward", tmp_path, "--policy", str(smollm2))["summary"]
    pairs = ("bfloat16", "nvfp4_matched", "nvfp4_unmatched")
    assert summary["default"].keys() == {f"{pair}_{name}" for pair in pairs for name in ("excess", "k3")}


@pytest.mark.slow
def test_routing_replay_compares_both_learners(tmp_path: Path) -> None:
    summary = run_short("routing_replay", tmp_path)["summary"]
    assert summary.keys() == {"tiny"}
    assert summary["tiny"]["tokens"] == 16 and 0 <= summary["tiny"]["route_mismatch"] < 0.2


@pytest.mark.slow
def test_adapter_measures_every_way_to_train(tmp_path: Path, smollm2: Path) -> None:
    report = run_short("adapter", tmp_path, "--policy", str(smollm2))
    summary = report["summary"]
    assert summary.keys() == report["raw"].keys() == WAYS.keys()
    assert summary["adapter"]["published_mib"] < summary["adapter_merged"]["published_mib"]
    assert summary["adapter_nvfp4"]["published_base_mib"] < summary["adapter"]["published_base_mib"]
    assert summary["all_weights"]["published_base_mib"] == 0
    held = {way: figures["learner_held_mib"] for way, figures in summary.items()}
    assert 1.7 < held["adapter_float32"] / held["adapter"] < 2 < held["all_weights"] / held["adapter_float32"]


@pytest.mark.slow
def test_ranks_measures_learners_of_one_and_of_two_processes(tmp_path: Path, smollm2: Path) -> None:
    summary = run_short("ranks", tmp_path, "--policy", str(smollm2))["summary"]
    assert summary.keys() == LEARNERS.keys()
    assert summary["one"]["ratio_to_one"] == 1.0
    assert all(figures["trained_tokens_per_s"] > 0 and figures["publish_s"] > 0 for figures in summary.values())


@pytest.mark.slow
def test_nodes_trains_each_task_once_although_a_rank_and_then_a_node_are_lost(tmp_path: Path) -> None:
    report = run_short("nodes", tmp_path, "--runs", str(tmp_path / "runs"))
    two, story = report["summary"]["seed_0"]["two"], report["raw"]["seed_0"]["two"]["story"]
    assert (two["num_trained"], two["is_each_task_trained_once"]) == (12, 1)
    assert two["num_learner_restarts"] == 2 and two["num_engines_replaced"] == 1
    before, after = (story[when]["places"] for when in ("before the loss of the node of rank 0", "after both"))
    assert sorted(before.values()) == ["node 1", "node 1", "node 2", "node 2"]  # a rank and an engine each
    assert before["learner rank 0"] != before["learner rank 1"]
    assert before["learner rank 0"] not in after.values() and "node 3" in after.values()


def test_nodes_compares_two_runs_task_by_task_with_standard_errors_of_tasks() -> None:
    before = {"a": [0.0, 1.0], "b": [0.0, 0.0]}
    one = {"before": before, "after": {"a": [1.0, 0.0], "b": [0.0, 1.0, 0.0]}, "seconds": 9.0}
    one |= {"replies": ["a", "b"], "grad_norms": [0.0, 2.0]}
    two = {
        "before": before,
        "after": {"a": [1.0, 0.5], "b": [0.5, None, 0.0]},  # no rollout of the second task of b counts
        "seconds": 12.0,
        "replies": ["a", "c"],
        "grad_norms": [0.0, 1.5],
        "num_trained": 6,
        "is_each_task_trained_once": True,
        "learner_restarts": ["from step 2", "from step 4"],
        "engines_replaced": ["worker 1"],
    }
    summary = compared(one, two)
    assert summary["one"]["before"]["a"] == {"mean": 0.5, "stderr": 0.5}
    assert summary["one"]["before"]["mean"] == {"mean": 0.25, "stderr": 0.25}
    assert summary["two_less_one"]["a"] == {"mean": 0.25, "stderr": 0.25}  # 0 and 0.5
    assert summary["two_less_one"]["b"] == {"mean": 0.25, "stderr": 0.25}  # 0.5 and 0
    assert summary["two_less_one"]["mean"] == pytest.approx({"mean": 0.25, "stderr": 0.125 * 2**0.5})
    assert (summary["two"]["num_learner_restarts"], summary["two"]["is_each_task_trained_once"]) == (2, 1)
    assert summary["num_steps_with_equal_replies"] == 1
    assert summary["largest_relative_difference_of_grad_norms"] == 0.25


@pytest.mark.slow
def test_chaos_resumes_what_ends_and_finds_nothing_lost_twice_poisoned_or_left(tmp_path: Path) -> None:
    report = run_short("chaos", tmp_path, "--points", "2", "--runs", str(tmp_path / "runs"))
    killed, replaced = sorted(report["raw"], key=lambda one: one["fault"])
    assert (killed["fault"], killed["codes"]) == ("driver SIGKILL", [-9, 0])
    assert (replaced["fault"], replaced["codes"], replaced["is_told"]) == ("worker SIGKILL", [0], True)
    found = report["summary"]
    assert (found.pop("points"), found.pop("synchronous_points"), found.pop("attempts")) == (2, 1, 3)
    assert found and not any(found.values()), report["raw"]


@pytest.mark.slow
def test_against_trl_trains_both_sides_on_the_same_prompts(tmp_path: Path, smollm2: Path) -> None:
    report = run_short("against_trl", tmp_path, "--policy", str(smollm2))
    summary = report["summary"]
    assert summary["polygym"].keys() == summary["trl"].keys() == NEEDED_ON_BOTH_SIDES
    assert summary["polygym_by_trl"].keys() == {"tokens_per_s", "peak_gib"}
    assert [turn["side"] for turn in report["turns"]] == ["polygym", "trl"]
    assert all(len(turn["steps"]) == 1 for turn in report["turns"])
