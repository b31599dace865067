"""`python -m rl plan`: what shares a card, which half of a step is longer, exit codes and remedies."""

import json
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from rl.__main__ import main
from rl.config.errors import ConfigError
from rl.config.experiment import ExperimentConfig
from rl.plan.cards import CARDS, Card, card_called, chosen_card, this_machine
from rl.plan.engine import engine_memory
from rl.plan.fit import make_plan
from rl.plan.memory import GIB
from rl.plan.show import show_plan
from rl.plan.speed import step_bytes, step_speed, train_flops
from tests.makers import make_config
from tests.published_models import PUBLISHED, long_config, shapes_of

H100 = CARDS["h100-80gb"]
HALVES = {"learner": {"gpus": 0.5}, "rollout": {"gpus_per_worker": 0.5, "gpu_memory_share": 0.4}}
NUM = 596_049_920
"""Weights of Qwen3-0.6B."""
SMALL = shapes_of(PUBLISHED["Qwen3-0.6B"]())
LARGE = shapes_of(PUBLISHED["Qwen3-8B"]())


# Places


def places(config: ExperimentConfig) -> dict[str, list[str]]:
    plan = make_plan(SMALL, config, H100, None)
    return {place.name: [name for name, _ in place.tenants] for place in plan.places if place.is_gpu}


@pytest.mark.parametrize(
    ("learner", "worker", "num", "expected"),
    [
        (0.5, 0.5, 1, {"the learner's card": ["learner", "engine"]}),
        (0.5, 0.25, 3, {"the learner's card": ["learner", "engine", "engine"], "a card of engines": ["engine"]}),
        (1, 1, 2, {"the learner's card": ["learner"], "a card of engines": ["engine"]}),
        (1, 0.5, 4, {"the learner's card": ["learner"], "a card of engines": ["engine", "engine"]}),
        (0.4, 0.3, 2, {"the learner's card": ["learner", "engine", "engine"]}),
        (0, 4, 1, {"a card of engines": ["engine"]}),
        (1, 0, 1, {"the learner's card": ["learner"]}),
    ],
)
def test_fractions_of_a_card_share_it(learner: float, worker: float, num: int, expected: dict[str, list[str]]) -> None:
    config = long_config(learner={"gpus": learner}, rollout={"gpus_per_worker": worker, "num_workers": num})
    assert places(config) == expected


def test_small_policies_share_a_card_and_large_ones_are_told_what_helps() -> None:
    assert make_plan(SMALL, long_config(**HALVES), H100, None).fits
    plan = make_plan(LARGE, long_config(**HALVES), H100, None)
    ((wrong, ways),) = plan.problems()
    assert wrong.startswith("the learner's card: ") and "74.5 GiB there" in wrong
    # of 8.19 B weights: gradients and moments, half of the float32 weights, the rounded copy, and the head's gradients
    assert "learner.adapter={} saves 123.7 GiB" in ways
    assert "learner.offload_moments=true saves 61.0 GiB" in ways  # 8 bytes a weight
    assert ways[0].startswith("learner.activation_checkpointing=true saves")
    assert ways[1].startswith("learner.tokens_per_micro_batch=2048 saves")
    assert ways[-1].startswith("learner.gpus=1 rollout.gpus_per_worker=1")
    assert "all of these: the learner needs 19.5 GiB then" in ways
    enough = "the card or the policy: these keys are not enough"
    assert enough not in ways
    larger = shapes_of(PUBLISHED["Qwen3-14B"]())
    _, ways = next(make_plan(larger, long_config(**HALVES), CARDS["rtx-4090"], None).problems())
    assert enough in ways


def test_moments_that_are_offloaded_are_on_the_host() -> None:
    sizes = []
    for offload in (False, True):
        plan = make_plan(SMALL, long_config(learner={"gpus": 1, "offload_moments": offload}), H100, None)
        sizes.append([place.used for place in plan.places])
    assert (sizes[0][0] - sizes[1][0], sizes[1][1] - sizes[0][1]) == (8 * NUM, 8 * NUM)


def test_the_share_that_is_told_leaves_room_for_the_learner() -> None:
    rollout = {"gpus_per_worker": 0.5, "gpu_memory_share": 0.9}
    learner = {"gpus": 0.5, "tokens_per_micro_batch": 2048}
    train = {"num_steps": 1, "num_prompts": 8, "group_size": 8}
    ((_, ways),) = make_plan(SMALL, long_config(learner=learner, rollout=rollout, train=train), H100, None).problems()
    assert "rollout.gpu_memory_share=0.75 leaves room for the rest" in ways
    rollout["gpu_memory_share"] = 0.75
    assert make_plan(SMALL, long_config(learner=learner, rollout=rollout, train=train), H100, None).fits


def test_a_measured_run_needs_what_is_planned_within_a_tenth(repo: Path) -> None:
    """`benchmarks.against_trl` adds up the memory of all processes of a run with SmolLM2-135M."""
    measured = json.loads((repo / "benchmarks" / "results" / "against_trl.json").read_text())
    sections = {name: measured["settings"][name] for name in ("train", "learner", "rollout")}
    shapes = shapes_of(PUBLISHED["SmolLM2-135M"]())
    plan = make_plan(shapes, long_config(256, **sections), None, 1e12)
    (host,) = plan.places
    assert host.used / GIB == pytest.approx(measured["summary"]["polygym"]["peak_gib"], rel=0.1)


def test_an_engine_without_room_for_a_sequence_does_not_fit() -> None:
    config = long_config(rollout={"kv_cache_gib": 0.1})
    ((wrong, ways),) = make_plan(SMALL, config, None, 1e12).problems()
    assert "holds no sequence of policy.max_tokens: 0.12 GiB are missing" in wrong
    assert ways == ["rollout.kv_cache_gib=0.219 or more", "policy.max_tokens, to 936 or less"]


def test_fewer_full_sequences_than_seats_are_remarked() -> None:
    plan = make_plan(SMALL, long_config(rollout={"kv_cache_gib": 1}), None, 1e12)
    (remark,) = plan.remarks()
    assert "holds 4 sequences of full length, fewer than rollout.max_in_flight (64)" in remark
    assert plan.fits


# Speed


def test_a_step_reads_active_weights_and_the_cache() -> None:
    config = long_config(rollout={"max_reply_tokens": 1024})
    sequence = 2 * 57_344 * (2048 - 512)
    assert step_bytes(SMALL, config, 10) == 2 * NUM + 10 * sequence
    shapes = shapes_of(PUBLISHED["Qwen3-30B-A3B"]())
    one, many = (step_bytes(shapes, config, num) - num * 2 * 49_152 * 1536 for num in (1, 10_000))
    assert one == pytest.approx(2 * shapes.num_active_weights)
    assert many == pytest.approx(2 * (shapes.num_weights - shapes.num_embedding_weights))


def test_the_longer_half_of_a_step_is_told() -> None:
    config = long_config(train={"num_steps": 1, "num_prompts": 8, "group_size": 8}, learner={"gpus": 1})
    engine = engine_memory(SMALL, config, None)
    speed = step_speed(SMALL, config, engine, H100, H100)
    assert speed.train_s == pytest.approx(6 * NUM * 64 * 2048 / (0.35 * 989.5e12))
    assert train_flops(SMALL, long_config(learner={"adapter": {}})) == 4 * NUM
    assert train_flops(SMALL, long_config(loss={"reference_kl": 0.1})) == 8 * NUM
    assert train_flops(SMALL, long_config(learner={"activation_checkpointing": True})) == 8 * NUM
    assert speed.num_in_flight == engine.num_sequences == 2
    assert speed.engine_step_s == 0.005
    prompts_s = 2 * NUM * 64 * (2048 - 96) / (0.35 * 989.5e12)
    assert speed.sample_s == pytest.approx(32 * 96 * 0.005 + prompts_s)
    assert speed.longer == "sampling"


# Cards


@pytest.mark.parametrize(
    ("product", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100-80gb"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L4", "l4"),
    ],
)
def test_drivers_names_are_found_in_the_table(product: str, name: str) -> None:
    assert card_called(product) is chosen_card(name) is CARDS[name]


def test_unknown_cards_are_told() -> None:
    with pytest.raises(ConfigError, match="the table has no Quadro; name the card"):
        card_called("Quadro")
    with pytest.raises(ConfigError, match="--gpu h100: there is no such card in the table; cards: b200"):
        chosen_card("h100")


@pytest.mark.slow
def test_this_machine_is_measured() -> None:
    machine = this_machine(1)
    assert machine.memory_bytes > GIB / 2 and machine.bandwidth > 0 and min(machine.flops.values()) > 0


# The command


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["rl", "plan", *map(str, arguments)])
    try:
        return main()
    except SystemExit as end:
        return int(end.code or 0)


@pytest.fixture
def yaml(tmp_path: Path) -> Path:
    PUBLISHED["Qwen3-8B"]().save_pretrained(tmp_path / "large")
    path = tmp_path / "experiment.yaml"
    lines = ["run_dir: run", "seed: 0", "policy: {build: {}}", "environments: {math/Arithmetic-v0: {}}", "sft: {}"]
    path.write_text("\n".join([*lines, "train: {num_steps: 1}"]) + "\n")
    return path


def test_a_policy_that_is_built_fits_this_machine(
    yaml: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = Card("this machine", 8e9, {"float32": 1e11}, 1e10, "a test", is_gpu=False)
    monkeypatch.setattr("rl.plan.show.this_machine", lambda num_threads: machine)
    assert run(monkeypatch, yaml) == 0
    printed = capsys.readouterr().out
    assert "it fits" in printed and "master weights" in printed and "0.7 M" in printed


def test_what_does_not_fit_exits_with_1_and_names_the_keys(
    yaml: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    card = ["precision=bf16", "learner.gpus=0.5", "rollout.gpus_per_worker=0.5", "--gpu", "rtx-4090"]
    policy = f"policy={{path: {yaml.parent}/large, build: null}}"
    assert run(monkeypatch, yaml, policy, *card) == 1
    printed = capsys.readouterr().out
    assert "does not fit: the learner's card" in printed and "learner.adapter={} saves" in printed


def test_wrong_configurations_exit_with_2(yaml: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    reserved = "learner.gpus=1"
    assert run(monkeypatch, yaml, "--gpu", "h100-80gb") == 2  # nothing would use the card
    assert run(monkeypatch, yaml, reserved, "--gpu", "h100") == 2
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run(monkeypatch, yaml, reserved) == 2
    assert run(monkeypatch, yaml, f"policy={{path: {tmp_path}/none, build: null}}") == 2


def test_the_plan_names_the_policys_key_if_its_files_do_not_tell_enough(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nobodys"}')
    with pytest.raises(ConfigError, match=r"policy\.path: .*holds no weights, and transformers has no such model"):
        show_plan(make_config(policy={"path": tmp_path}), "", Console(quiet=True))
