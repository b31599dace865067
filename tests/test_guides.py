"""Each experiment of a guide runs to its end and is exported, with a tiny random policy and in small sizes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from envs.gold import gold_conversation
from envs.registry import make
from rl.runs.saved_rollouts import load_rollouts
from tests.families import write_policy
from tests.test_rl_commands import run

pytestmark = pytest.mark.slow

SMALL = (
    "policy.max_tokens=1024",
    "train={num_prompts: 4, group_size: 4}",
    "learner={cpus: 1, gpus: 0, learning_rate: 1.0e-3, warmup_steps: 0, tokens_per_micro_batch: 2048}",
    "rollout={num_workers: 1, gpus_per_worker: 0, gpu_memory_share: null, max_in_flight: 8, max_reply_tokens: 64}",
    "rollout.kv_cache_gib=0.1",
    "evaluation={num_tasks: 1, num_samples: 1, every: 0}",
    "ray.address=local",
)
BUDGETS = ("budget={grace_tokens: 8, answer_tokens: 32}", "rollout.max_reply_tokens=320")


def command(*arguments: object) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *map(str, arguments)], capture_output=True, text=True, timeout=480, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def lines_of(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]


def trained(name: str, policy: Path, run_dir: Path, *overrides: str) -> list[dict[str, Any]]:
    """The metrics of each step of the experiment in this folder, trained in small sizes."""
    yaml = f"experiments/{name}/train.yaml"
    command("rl", "train", yaml, f"policy.path={policy}", f"run_dir={run_dir}", *SMALL, *overrides)
    return lines_of(run_dir, "train")


def check_export(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run is exported by the command, and transformers loads and samples from the folder as it is."""
    out = run_dir.with_name("exported")
    assert run(monkeypatch, "export", run_dir, out) == 0
    check_sampling(out)
    assert "held-out tasks of" in (out / "README.md").read_text()


def check_sampling(policy: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(policy)
    tokenizer = AutoTokenizer.from_pretrained(policy)
    messages = [{"role": "user", "content": "What do 3 pens at 2 euros each cost?"}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    ids = model.generate(**inputs, max_new_tokens=4, min_new_tokens=4)
    assert ids.shape[1] == inputs["input_ids"].shape[1] + 4


GUIDES: dict[str, tuple[str, tuple[str, ...]]] = {
    "qwen3_grade_school": ("qwen3", BUDGETS),
    "smollm2_math": ("llama", ()),
    "own_reward": ("llama", ()),
    "qwen3_lora": ("qwen3", BUDGETS),
}
"""Kind of the tiny policy, and further overrides, by folder of `experiments/`."""


@pytest.mark.parametrize("name", GUIDES)
def test_the_experiment_of_a_guide_trains_and_is_exported(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, overrides = GUIDES[name]
    policy, run_dir = write_policy(kind, tmp_path / "policy"), tmp_path / "run"
    (step,) = trained(name, policy, run_dir, "train.num_steps=1", *overrides)
    assert step["update/mismatch"] < 1.05
    assert step["masked_rows"] == step["budget_violations"] == 0
    assert len(lines_of(run_dir, "evaluation")) == 2  # before and after
    assert (run_dir / "checkpoints" / "step_000001" / "learner" / "adapter").exists() == (name == "qwen3_lora")
    check_export(run_dir, monkeypatch)


def test_the_guide_to_tools_trains_a_qwen_with_budgets_after_a_supervised_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32, where learner and engine agree to the last digits."""
    env = make("tools/Store-v0")
    texts = tuple(m.content for seed in range(100) for m in gold_conversation(env, seed, {"split": "train"}))
    policy, run_dir = write_policy("qwen3", tmp_path / "policy", texts), tmp_path / "run"
    overrides = (
        "precision=float32",
        "sft={num_steps: 2, num_conversations: 64, learning_rate: 1.0e-3}",
        "train.num_steps=2",
    )
    steps = trained("qwen3_store", policy, run_dir, *BUDGETS, *overrides)
    assert len(steps) == 2
    assert all(step["update/mismatch"] < 1.0001 for step in steps)
    rollouts = list(load_rollouts(run_dir / "rollouts" / "train_000001.jsonl"))
    forced = {rollout.task.budget for rollout in rollouts if any(turn.num_forced for turn in rollout.turns)}
    assert forced == {128}  # random reasoning hardly ever ends by itself
    assert not any(rollout.budget_violation for rollout in rollouts)
    check_export(run_dir, monkeypatch)


def test_the_guide_to_own_tools_builds_a_policy_that_learns_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "run"
    sizes = ("sft.num_steps=2", "sft.num_conversations=64", "train.num_steps=1")
    command("rl", "train", "experiments/own_tools/train.yaml", f"run_dir={run_dir}", *SMALL, *sizes)
    (step,) = lines_of(run_dir, "train")
    assert step["update/mismatch"] < 1.0001 and step["masked_rows"] == 0
    check_export(run_dir, monkeypatch)


def test_the_guide_to_adapters_trains_one_on_cpus_and_exports_both_forms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, run_dir = write_policy("llama", tmp_path / "policy"), tmp_path / "run"
    (step,) = trained("smollm2_math", policy, run_dir, "train.num_steps=1", "learner.adapter={}")
    assert step["update/mismatch"] < 1.05 and step["masked_rows"] == 0
    check_export(run_dir, monkeypatch)
    assert run(monkeypatch, "export", run_dir, tmp_path / "adapter", "--adapter") == 0
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(policy), str(tmp_path / "adapter"))
    assert model.peft_config["default"].r == 16  # type: ignore[union-attr]


def test_the_guide_to_own_rows_trains_them_and_measures_those_held_out(tmp_path: Path) -> None:
    policy, run_dir = write_policy("llama", tmp_path / "policy"), tmp_path / "run"
    sizes = ("policy.max_tokens=1024", "sft.num_steps=2", "sft.learning_rate=1.0e-3", "sft.warmup_steps=0")
    paths = (f"policy.path={policy}", f"run_dir={run_dir}")
    command("sft", "train", "experiments/own_rows/stage.yaml", *paths, *sizes)
    lines = list(map(json.loads, (run_dir / "sft" / "metrics.jsonl").read_text().splitlines()))
    assert [line["step"] for line in lines if "heldout_loss" in line] == [2]
    check_sampling(run_dir / "sft")
