"""`sft show` prints rows as they are trained; the commands ask only for what they use."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rl.config.errors import ConfigError
from rl.config.stages import load_stage
from sft.__main__ import app

ASK = {"role": "user", "content": "hi"}
ROWS = [
    {"messages": [ASK, {"role": "assistant", "content": "yoé", "thinking": "r"}]},
    {
        "prompt": [ASK, {"role": "assistant", "content": "b"}, ASK],
        "completion": "d\x1b[2J",
    },
    {"prompt": "p" * 300, "completion": "c"},
]
YAML = "run_dir: {folder}/run\nseed: 0\npolicy: {policy}\nsft: {{data: {folder}/rows.jsonl}}\n"


def write_stage(folder: Path, policy: str) -> Path:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "stage.yaml").write_text(YAML.format(folder=folder, policy=policy))
    return folder / "stage.yaml"


def shown(yaml: Path, *arguments: str, **more: Any) -> str:
    done = CliRunner().invoke(app, ["show", str(yaml), *arguments], catch_exceptions=False, **more)
    assert done.exit_code == 0
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("is_built", [True, False])
def test_rows_are_shown_as_they_are_trained(tmp_path: Path, is_built: bool) -> None:
    from tests.test_sft_stage import dense_policy

    policy = "{build: {}, max_tokens: 200}"
    if not is_built:
        policy = f"{{path: {dense_policy('llama', tmp_path / 'dense')}, chat: nemotron, max_tokens: 200}}"
    yaml = write_stage(tmp_path, policy)
    text = shown(yaml)
    first, second, third = text.split("\n\n")[:3]
    assert first.startswith(f"--- {tmp_path}/rows.jsonl, row 1: ")
    assert first.endswith(
        "thinking budget unlimited\n"
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n<think>\n⟦r\n</think>\nyoé<|im_end|>⟧"
    )
    assert " tokens, 6 of them trained, thinking budget off\n" in second or is_built
    assert "assistant\n<think></think>b<|im_end|>\n" in second  # a reply of a prompt is only read
    assert second.endswith(r"⟦d\x1b[2J<|im_end|>⟧")
    assert "; skipped, because policy.max_tokens is 200\n" in third or is_built  # whose tokenizer has merges
    assert shown(yaml, "-n", "1").rstrip() == first
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_rows_of_each_source_are_shown_with_what_was_varied(tmp_path: Path) -> None:
    yaml = write_stage(tmp_path, "{build: {}, max_tokens: 400}")
    said = {"role": "assistant", "content": "yo", "thinking": "wait " * 40}
    (tmp_path / "more.jsonl").write_text(json.dumps({"messages": [ASK, said], "effort": "medium"}) + "\n")
    data = [{"path": f"{tmp_path}/rows.jsonl", "weight": 2}, {"path": f"{tmp_path}/more.jsonl", "epochs": 3}]
    more = ["sft.truncated_share=1", "sft.truncated_end=trained", "sft.repetition_max=0.5"]
    text = shown(yaml, "-n", "1", f"sft.data={json.dumps(data)}", *more)
    first, second = text.split("\n=== ")
    assert first.startswith(
        f"=== {tmp_path}/rows.jsonl: 3 conversations, weight 2\n\n--- {tmp_path}/rows.jsonl, row 1: "
    )
    assert ", thinking budget 1, at which the reasoning is cut, its end trained\n" in first
    assert second.startswith(f"{tmp_path}/more.jsonl: 1 conversations, epochs 3\n\n--- {tmp_path}/more.jsonl, row 1: ")
    assert (
        ", thinking budget unlimited, effort medium; left out, because 97% of its reasoning's runs of words" in second
    )
    assert "hi\n\n{reasoning effort: medium}<|im_end|>" in second


@pytest.mark.slow
def test_trained_tokens_are_coloured_on_a_terminal(tmp_path: Path) -> None:
    yaml = write_stage(tmp_path, "{build: {}}")
    text = shown(yaml, "-n", "1", env={"FORCE_COLOR": "1", "TERM": "xterm", "NO_COLOR": None})
    assert "\x1b[32m\x1b[1mr\n</think>\nyoé<|im_end|>\x1b[0m" in text
    assert "⟦" not in text


@pytest.mark.slow
def test_gold_conversations_are_shown_and_a_missing_section_is_told(tmp_path: Path) -> None:
    yaml = tmp_path / "gold.yaml"
    gold = "environments: {math/Arithmetic-v0: {}}\nsft: {num_conversations: 50, no_thinking_share: 0}\n"
    yaml.write_text(f"run_dir: {tmp_path}/run\nseed: 0\npolicy: {{build: {{}}}}\n{gold}")
    text = shown(yaml, "-n", "2")
    assert text.count("--- math/Arithmetic-v0, seed ") == text.count("⟦") == 2
    with pytest.raises(ConfigError, match="no `sft` section"):
        shown(yaml, "sft=null", "policy.build=null", f"policy.path={tmp_path}")


def test_the_stage_needs_no_sections_that_it_does_not_read(tmp_path: Path) -> None:
    yaml = tmp_path / "stage.yaml"
    yaml.write_text("run_dir: r\nseed: 0\npolicy: {path: x, max_tokens: 100000}\nsft: {data: rows.jsonl}\n")
    sft = load_stage(yaml, ["sft.num_steps=7"]).sft
    assert sft is not None
    assert (sft.num_steps, sft.data) == (7, Path("rows.jsonl"))
    assert load_stage(yaml, []).learner.tokens_per_micro_batch == 100_000  # the longest row fits
    assert load_stage(yaml, ["policy.max_tokens=100"]).learner.tokens_per_micro_batch == 4096  # the default
    other_keys = load_stage(yaml, ["learner.cpus=2", "train.record=false"])  # beside those that are not read
    assert (other_keys.learner.tokens_per_micro_batch, other_keys.learner.cpus) == (100_000, 2)
    with pytest.raises(ConfigError, match="environments: is missing"):
        load_stage(yaml, ["sft.data=null"])
    gold = load_stage(yaml, ["sft.data=null", "environments.math/Arithmetic-v0.weight=2"])
    assert list(gold.environments) == ["math/Arithmetic-v0"]
    given = load_stage(yaml, ["train.num_steps=5", "environments.math/Arithmetic-v0.weight=2"])
    assert (given.train.num_steps, list(given.environments)) == (5, ["math/Arithmetic-v0"])
    with pytest.raises(ConfigError, match=r"sft\.num_step: there is no such key"):
        load_stage(yaml, ["sft.num_step=5"])
