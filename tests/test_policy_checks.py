"""Wrong checkpoints and settings that would ruin one are told before anything starts, and defaults suit the policy."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from rl.chat.formats.nemotron import NemotronFormat
from rl.config.checkpoint_defaults import CHECKPOINT_DEFAULTS, PRETRAINED_WEIGHTS
from rl.config.checkpoint_files import CheckpointFileError, num_parameters, tensor_shapes
from rl.config.errors import ConfigError
from rl.config.explain import explain
from rl.config.hub import is_hub_id
from rl.config.read import check_references, dump_config, load_config
from rl.policies import train_tokenizer
from rl.policy_checks import check_policy, check_stage_policy, rate_warning
from tests.makers import make_config

VOCAB_SIZE = 384
CONFIG: Mapping[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 2,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}
SHAPES: Mapping[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (VOCAB_SIZE, 4),
    "model.layers.0.mlp.up_proj.weight": (8, 4),
    "model.layers.1.mlp.up_proj.weight": (8, 4),
    "model.norm.weight": (4,),
    "lm_head.weight": (VOCAB_SIZE, 4),
}


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    """A folder with the tokenizer of the Nemotron format and the weights of a small model."""
    folder = tmp_path / "policy"
    folder.mkdir()
    train_tokenizer(["a conversation"] * 3, VOCAB_SIZE, NemotronFormat()).save_pretrained(folder)
    write(folder)
    return folder


def write(folder: Path, shapes: Mapping[str, tuple[int, ...]] = SHAPES, **config: Any) -> None:
    (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
    save_file({name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, folder / "model.safetensors")


def problems(folder: Path, **sections: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        check_policy(folder, make_config(**sections))
    return str(caught.value)


def without(name: str) -> dict[str, tuple[int, ...]]:
    return {key: shape for key, shape in SHAPES.items() if key != name}


def test_a_whole_policy_is_accepted(policy: Path) -> None:
    check_policy(policy, make_config())
    write(policy, without("lm_head.weight"), tie_word_embeddings=True)
    check_policy(policy, make_config())
    (policy / "config.json").write_text('{"model_type": "llama"}')
    check_policy(policy, make_config())


def test_a_policy_that_cannot_be_played_is_refused_with_every_reason(policy: Path) -> None:
    whole = (policy / "model.safetensors").read_bytes()
    (policy / "model.safetensors").write_bytes(whole[:-8])
    (policy / "tokenizer.json").unlink()
    told = problems(policy)
    assert "cannot load the tokenizer" in told or "no tokenizer.json" in told
    assert "model.safetensors is damaged or cut off" in told


def test_a_policy_without_weights_or_with_another_chat_format_is_refused(policy: Path) -> None:
    (policy / "model.safetensors").unlink()
    assert "holds no weights" in problems(policy)
    assert "chat template" in problems(policy, policy={"path": policy, "chat": "template"})


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"architectures": ["LlavaForConditionalGeneration"]}, "only causal language models of text"),
        ({"final_logit_softcapping": 30.0}, "the learner does not compute final_logit_softcapping"),
        ({"attn_logit_softcapping": 50.0}, "the learner does not compute attn_logit_softcapping"),
        ({"logits_scaling": 8.0}, "the learner does not compute logits_scaling"),
        ({"quantization_config": {"quant_method": "gptq"}}, "holds quantised weights (gptq)"),
        (
            {"max_position_embeddings": 256},
            "512 tokens are more than the checkpoint's context of 256",
        ),
        ({"num_hidden_layers": 4}, "holds no weights of 2 layers, first 2"),
    ],
)
def test_a_model_that_cannot_be_trained_is_refused(config: dict[str, Any], words: str, policy: Path) -> None:
    write(policy, **config)
    assert words in problems(policy)


def test_routes_can_be_replayed_only_where_there_are_choices(policy: Path) -> None:
    told = problems(policy, learner={"routing_replay": True})
    assert "learner.routing_replay" in told and "has no routed experts" in told
    write(policy, {**SHAPES, "model.layers.0.mlp.experts.3.up_proj.weight": (8, 4)}, num_experts_per_tok=1)
    assert "sends each token to one expert" in problems(policy, learner={"routing_replay": True})


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        (without("lm_head.weight"), "no weights of the head, and its embeddings are not tied"),
        ({**SHAPES, "model.embed_tokens.weight": (100, 4)}, "but the embeddings have only 100 rows"),
        ({}, "holds no weights"),
    ],
)
def test_weights_that_are_not_there_are_told(shapes: dict[str, tuple[int, ...]], words: str, policy: Path) -> None:
    write(policy, shapes)
    assert words in problems(policy)


def test_rows_beyond_the_tokenizer_are_padding(policy: Path) -> None:
    write(policy, {**SHAPES, "model.embed_tokens.weight": (512, 4), "lm_head.weight": (512, 4)})
    check_policy(policy, make_config())


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ({"weight_map": {"a": "model-00002-of-00002.safetensors"}}, "lacks 1 of the files that its index names"),
        ({"weight_map": {"model.norm.bias": "model.safetensors"}}, "lacks 1 of the tensors that its index names"),
        ({}, "has no weight_map"),
        ([], "does not hold an object"),
    ],
)
def test_an_index_must_agree_with_the_files(index: Any, words: str, policy: Path) -> None:
    (policy / "model.safetensors.index.json").write_text(json.dumps(index))
    assert words in problems(policy)


@pytest.mark.parametrize("header", [b"", b"\xff" * 8, b"\x02" + bytes(7) + b"[]", b"\x05" + bytes(7) + b'{"a":'])
def test_a_file_that_is_no_safetensors_is_damaged(header: bytes, policy: Path) -> None:
    (policy / "model.safetensors").write_bytes(header)
    with pytest.raises(CheckpointFileError, match=r"model\.safetensors is damaged or cut off"):
        tensor_shapes(policy)


def test_shapes_and_weights_are_counted_from_the_headers(policy: Path) -> None:
    assert tensor_shapes(policy) == dict(SHAPES)
    assert num_parameters(policy) == 2 * VOCAB_SIZE * 4 + 2 * 32 + 4


# Defaults


@pytest.fixture
def pretrained(policy: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same folder, counted as a pretrained checkpoint."""
    monkeypatch.setattr("rl.config.checkpoint_defaults.PRETRAINED_WEIGHTS", 1000)
    monkeypatch.setattr("rl.policy_checks.PRETRAINED_WEIGHTS", 1000)
    return policy


def experiment(policy: Path, *lines: str) -> Path:
    path = policy.parent / "experiment.yaml"
    head = [f"run_dir: {policy.parent}/run", "seed: 0", "environments: {math/Arithmetic-v0: {}}"]
    path.write_text("\n".join([*head, "train: {num_steps: 1}", *lines]) + "\n")
    return path


STAGES = ("dpo: {data: pairs.jsonl}", "reward_model: {data: pairs.jsonl}")


def test_a_pretrained_checkpoint_has_defaults_of_its_kind(pretrained: Path) -> None:
    config = load_config(experiment(pretrained, f"policy: {{path: {pretrained}}}", "sft: {}", *STAGES))
    assert (config.learner.learning_rate, config.policy.max_tokens, config.rollout.max_reply_tokens) == (
        1e-6,
        2048,
        512,
    )
    assert config.sft is not None and config.sft.learning_rate == 2e-5
    assert config.dpo is not None and config.dpo.learning_rate == 3e-6
    assert set(config.chosen) == set(CHECKPOINT_DEFAULTS)
    saved = pretrained.parent / "saved.yaml"
    saved.write_text(dump_config(config))
    assert load_config(saved) == config
    assert load_config(saved).chosen == {}


def test_an_adapter_of_a_pretrained_checkpoint_has_ten_times_the_rate(pretrained: Path) -> None:
    lines = ("learner: {adapter: {}}", "sft: {adapter: {}}")
    config = load_config(experiment(pretrained, f"policy: {{path: {pretrained}}}", *lines))
    assert config.sft is not None
    assert (config.learner.learning_rate, config.sft.learning_rate) == (1e-5, 2e-4)
    assert "1e-05 for an adapter of one" in explain("learner.learning_rate")


def test_a_short_context_bounds_the_lengths(pretrained: Path) -> None:
    write(pretrained, max_position_embeddings=600)
    config = load_config(experiment(pretrained, f"policy: {{path: {pretrained}}}"))
    assert (config.policy.max_tokens, config.rollout.max_reply_tokens) == (600, 300)
    assert "sft.learning_rate" not in config.chosen


def test_what_is_set_stays(pretrained: Path) -> None:
    lines = (f"policy: {{path: {pretrained}, max_tokens: 400}}", "learner: {learning_rate: 3.0e-6}")
    config = load_config(experiment(pretrained, *lines), ["rollout.max_reply_tokens=50"])
    assert (config.learner.learning_rate, config.policy.max_tokens, config.rollout.max_reply_tokens) == (3e-6, 400, 50)
    assert config.chosen == {}


def test_a_tiny_policy_and_one_that_is_built_keep_their_defaults(policy: Path) -> None:
    assert num_parameters(policy) < PRETRAINED_WEIGHTS
    for source in (f"{{path: {policy}}}", "{build: {}}", f"{{path: {policy}/none}}"):
        config = load_config(experiment(policy, f"policy: {source}", "sft: {}"))
        assert config == load_config(experiment(policy, f"policy: {source}", "sft: {learning_rate: 3.0e-3}"))
        assert config.chosen == {}


def test_a_rate_that_ruins_a_checkpoint_is_warned_of(pretrained: Path, policy: Path) -> None:
    told = rate_warning(pretrained, "learner.learning_rate", 2e-4)
    assert "learner.learning_rate is 0.0002" in told and "makes it forget" in told
    assert rate_warning(pretrained, "learner.learning_rate", 1e-4) == ""


def test_a_hub_id_is_the_newest_snapshot_in_the_cache(
    pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    yaml = experiment(pretrained, "policy: {path: someone/model-0.6B}")
    assert load_config(yaml).policy.max_tokens == 2048
    with pytest.raises(ConfigError, match=r"no model someone/model-0\.6B in the cache(?s:.*)hf download someone/model"):
        check_references(load_config(yaml))
    model = tmp_path / "hub" / "models--someone--model-0.6B"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text("abc123")
    (model / "snapshots").mkdir()
    pretrained.rename(model / "snapshots" / "abc123")
    config = load_config(yaml)
    assert config.policy.path == model / "snapshots" / "abc123"
    assert config.policy.max_tokens == 2048
    check_references(config)


def test_a_relative_folder_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_hub_id(Path("models/none"))
    (tmp_path / "models").mkdir()
    assert not any(map(is_hub_id, map(Path, ("models/none", "none", "/a/b", "a/b/c", "../a"))))


def test_explain_tells_both_defaults() -> None:
    text = explain("learner.learning_rate")
    assert "default: 0.0002" in text and "1e-06 for a pretrained checkpoint (TRL's GRPOConfig" in text


def stage_problems(name: Any, folder: Path, **keys: Any) -> str:
    sections: dict[str, Any] = {"policy": {"path": folder, "max_tokens": 400}, name: {"data": "x.jsonl", **keys}}
    with pytest.raises(ConfigError) as caught:
        check_stage_policy(make_config(**sections), name)
    return str(caught.value)


@pytest.mark.parametrize("name", ["sft", "dpo", "reward_model"])
def test_a_stage_that_runs_by_itself_refuses_what_it_cannot_train(policy: Path, name: Any) -> None:
    write(
        policy, {**SHAPES, "model.embed_tokens.weight": (200, 4)}, max_position_embeddings=256, quantization_config={}
    )
    found = stage_problems(name, policy)
    assert "400 tokens are more than the checkpoint's context of 256" in found
    assert "tokens, but the embeddings have only 200 rows" in found
    assert "holds quantised weights" in found
    write(policy)
    if name != "reward_model":
        assert f"{name}.adapter.targets: query match no layer" in stage_problems(
            name, policy, adapter={"targets": ("query",)}
        )


@pytest.mark.parametrize("name", ["sft", "dpo", "reward_model"])
def test_a_stage_leaves_out_what_only_concerns_reinforcement_learning(policy: Path, name: Any) -> None:
    write(policy, attn_logit_softcapping=50.0)
    assert "does not compute attn_logit_softcapping" in problems(policy)
    adapter = {"adapter": {"targets": ("query",)}, "routing_replay": True}
    sections: dict[str, Any] = {"policy": {"path": policy}, name: {"data": "x.jsonl"}, "learner": adapter}
    check_stage_policy(make_config(**sections), name)


def test_a_reward_model_may_be_trained_further(policy: Path) -> None:
    write(policy, without("lm_head.weight"), architectures=["LlamaForSequenceClassification"])
    sections: dict[str, Any] = {"policy": {"path": policy}, "reward_model": {"data": "x.jsonl"}}
    check_stage_policy(make_config(**sections), "reward_model")
    assert "only causal language models" in stage_problems("dpo", policy)


def test_commands_of_stages_check_the_policy_before_anything_is_begun(policy: Path, tmp_path: Path) -> None:
    from sft.__main__ import dpo, reward_model, train

    write(policy, quantization_config={"quant_method": "fp8"})
    (tmp_path / "rows.jsonl").write_text("{}\n")
    yaml = tmp_path / "stage.yaml"
    for name, command in {"sft": train, "dpo": dpo, "reward_model": reward_model}.items():
        section = f"{name}: {{data: {tmp_path / 'rows.jsonl'}}}"
        yaml.write_text(f"run_dir: {tmp_path / 'run'}\nseed: 0\npolicy: {{path: {policy}}}\n{section}\n")
        with pytest.raises(ConfigError, match=r"quantised weights \(fp8\)"):
            command(yaml, [])
    assert not (tmp_path / "run").exists()
