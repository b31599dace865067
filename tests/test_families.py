"""Policies of the families that people train: learner and engine agree, and a run trains them with tools."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from envs.gold import gold_conversation
from envs.messages import Message
from envs.registry import make
from rl.chat.chat import load_chat
from rl.learner.learner import Learner
from rl.runs.saved_rollouts import load_rollouts
from rl.weights.names import checkpoint_tensors
from rl.weights.shared_memory import write_weights
from tests.families import MODELS, write_policy
from tests.makers import make_config
from tests.test_agreement import as_sample, differences
from tests.test_engine import sample_many
from tests.test_serve import serving

pytestmark = pytest.mark.slow


def store_texts() -> tuple[str, ...]:
    env = make("tools/Store-v0")
    return tuple(m.content for seed in range(100) for m in gold_conversation(env, seed, {"split": "train"}))


@pytest.mark.parametrize("kind", MODELS)
def test_learner_and_engine_agree_before_and_after_an_update(kind: str, tmp_path: Path) -> None:
    from rl.engine.vllm_core import VllmEngine

    folder = write_policy(kind, tmp_path / "policy")
    config = make_config(
        policy={"path": folder, "max_tokens": 256},
        rollout={"max_in_flight": 12, "kv_cache_gib": 0.25},
        learner={"learning_rate": 1e-2, "warmup_steps": 0},
    )
    learner, engine = Learner(folder, config), VllmEngine(folder, config, lockstep_steps=2)
    try:
        turns = asyncio.run(sample_many(engine, 20, first_seed=0))
        samples = [as_sample(turn, 1.0 if number % 2 else -1.0) for number, turn in enumerate(turns)]
        assert differences(learner.model, samples).abs().max() < 1e-4
        learner.update(samples)
        assert differences(learner.model, samples).abs().mean() > 1e-2  # the update did something
        tensors = checkpoint_tensors(learner.model, "float32")
        source = write_weights(tensors, learner.policy_version, tmp_path / "published")
        assert asyncio.run(engine.load_weights(source)) == source.hash
        turns = asyncio.run(sample_many(engine, 20, first_seed=1000))
        assert differences(learner.model, [as_sample(turn, 0.0) for turn in turns]).abs().max() < 1e-4
    finally:
        engine.shutdown()


@pytest.mark.parametrize("kind", [kind for kind in MODELS if kind != "qwen3"])  # the guides take Qwen3 through this
def test_a_policy_is_taught_trained_evaluated_exported_and_served(kind: str, tmp_path: Path) -> None:
    policy = write_policy(kind, tmp_path / "policy", store_texts())
    thinks = load_chat(policy, "auto").has_thinking
    budget = {"off": 1, "16": 1, "unlimited": 1} if thinks else "unlimited"
    experiment = {
        "run_dir": str(tmp_path / "run"),
        "seed": 0,
        "policy": {"path": str(policy), "max_tokens": 768},
        "precision": "float32",
        "environments": {"tools/Store-v0": {"budget": budget}},
        "rollout": {"max_reply_tokens": 96, "max_in_flight": 16, "kv_cache_gib": 0.1},
        "budget": {"grace_tokens": 8, "answer_tokens": 32},
        "sft": {"num_steps": 2, "num_conversations": 64, "learning_rate": 1e-3},
        "train": {"num_steps": 2, "num_prompts": 4, "group_size": 4},
        "evaluation": {"num_tasks": 4},
        "ray": {"address": "local"},
    }
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump(experiment))
    run("rl", "train", str(path))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "train"]
    assert len(steps) == 2
    assert all(step["update/mismatch"] < 1.0001 for step in steps)  # mean exp|difference of logprobs|
    rollouts = load_rollouts(tmp_path / "run" / "rollouts" / "train_000001.jsonl")
    if thinks:
        forced = {rollout.task.budget: sum(turn.num_forced for turn in rollout.turns) > 0 for rollout in rollouts}
        assert forced == {budget: budget == 16 for budget in forced}  # random reasoning hardly ever ends by itself
        assert 16 in forced and not any(rollout.budget_violation for rollout in rollouts)
    run("rl", "export", str(tmp_path / "run"), str(tmp_path / "out"))
    check_served(tmp_path / "out")


def run(*command: str) -> None:
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, timeout=480, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def check_served(folder: Path) -> None:
    """The endpoint says the greedy tokens that transformers computes, and environments are played against it."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    chat = load_chat(folder, "auto")
    with serving(folder) as client:
        for said in ("What is the pen?", "é 7"):
            answer = client.chat.completions.create(
                model="mine",
                messages=[{"role": "user", "content": said}],
                temperature=0,
                max_tokens=24,
                extra_body={"return_token_ids": True},
            )
            (choice,) = answer.choices
            prompt = chat.begin([Message("user", said)], (), "unlimited").prompt_ids
            assert tuple(answer.prompt_token_ids) == prompt  # type: ignore[attr-defined]
            ids = torch.tensor([[*prompt, *choice.token_ids]])  # type: ignore[attr-defined]
            with torch.no_grad():
                greedy = model(ids).logits[0, len(prompt) - 1 : -1].argmax(-1)
            assert greedy.tolist() == choice.token_ids  # type: ignore[attr-defined]
        command = ["envs", "eval", "tools/Store-v0", "--url", str(client.base_url), "--model", "mine"]
        run(*command, "--tasks", "2", "--max-tokens", "32")
