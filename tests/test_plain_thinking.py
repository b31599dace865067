"""Think tags that would be trained as plain text are told with file, row and remedy."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rl.chat.chat import load_chat
from rl.chat.formats.nemotron import NemotronFormat
from rl.policies import train_tokenizer
from sft.__main__ import app
from sft.plain_thinking import plain_thinking
from tests.conversations import conversations_of
from tests.test_wrong_inputs import PLAIN_TEMPLATE

ASK = {"role": "user", "content": "What does <think> mean?"}
THINKING = {"role": "assistant", "content": "<think>\nTwo and two.\n</think>\n4"}
ROWS = [
    {"messages": [ASK, {"role": "assistant", "content": "4"}]},
    {"messages": [ASK, {**THINKING, "weight": 0}, ASK, {"role": "assistant", "content": "4"}]},
    {"messages": [ASK, THINKING]},
    {"messages": [ASK, THINKING]},
]


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    """A tokenizer that has think tokens, with a template that has no think block."""
    train_tokenizer(["a conversation"] * 3, 384, NemotronFormat()).save_pretrained(tmp_path / "policy")
    (tmp_path / "policy" / "chat_template.jinja").write_text(PLAIN_TEMPLATE)
    (tmp_path / "policy" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path / "policy"


def test_the_first_trained_row_with_tags_is_named_with_the_ways_out(policy: Path, tmp_path: Path) -> None:
    rows = conversations_of(tmp_path / "rows.jsonl", has_thinking=False)
    told = plain_thinking(rows, load_chat(policy, "template"), policy)
    assert f"{tmp_path}/rows.jsonl, row 3 and 1 more: <think>" in told
    assert "fix: remove the thinking from the rows" in told
    assert "set policy.chat: nemotron, which has a think block and fits this tokenizer" in told
    assert plain_thinking(rows[:2], load_chat(policy, "template"), policy) == ""  # not trained, or the user's


def test_a_format_with_a_think_block_needs_no_warning(policy: Path, tmp_path: Path) -> None:
    rows = conversations_of(tmp_path / "rows.jsonl", has_thinking=True)
    assert plain_thinking(rows, load_chat(policy, "nemotron"), policy) == ""


def test_the_warning_stands_before_the_rows_that_are_shown(policy: Path, tmp_path: Path) -> None:
    yaml = tmp_path / "stage.yaml"
    lines = [f"run_dir: {tmp_path}/run", "seed: 0", f"policy: {{path: {policy}, chat: template}}"]
    yaml.write_text("\n".join([*lines, f"sft: {{data: {tmp_path}/rows.jsonl}}"]) + "\n")
    shown = CliRunner().invoke(app, ["show", str(yaml)], catch_exceptions=False).stdout
    assert shown.startswith(f"warning: {tmp_path}/rows.jsonl, row 3 and 1 more: <think>")
