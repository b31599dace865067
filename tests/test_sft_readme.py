"""The examples of sft/README.md are read as the text beside them says."""

import json
import re
import shlex
import textwrap
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from envs.messages import Message, ToolCall
from rl.chat.chat import Chat
from rl.chat.formats.nemotron import NemotronFormat
from rl.config.supervised import SftConfig
from rl.policies import train_tokenizer
from sft.__main__ import app
from sft.data import token_row
from sft.mixture import rows_by_source
from sft.rows import FORMS, Conversation, read_row
from tests.families import write_policy
from tests.makers import make_config

README = (Path(__file__).parent.parent / "sft" / "README.md").read_text(encoding="utf-8")
ROWS = [json.loads(text) for text in re.findall(r"```json\n(.*?)```", README, re.DOTALL)]


@pytest.fixture(scope="module")
def conversations() -> list[Conversation]:
    return [read_row(row, "README", has_thinking=True) for row in ROWS]


def test_each_form_has_an_example(conversations: list[Conversation]) -> None:
    assert {keys for keys in FORMS for row in ROWS if set(keys) <= set(row)} == set(FORMS)
    shop, texts, lists, sharegpt = conversations
    call = (ToolCall("stock", {"sku": "A7"}),)
    asked = (Message("system", "You run a shop."), Message("user", "How many A7 are left?"))
    answer = Message("assistant", "Three.")
    assert shop.messages == (
        *asked, Message("assistant", "I look.", "Stock first.", call), Message("tool", "3", name="stock"), answer
    )  # fmt: skip
    assert sharegpt.messages == (*asked, Message("assistant", "", tool_calls=call), Message("tool", "3"), answer)
    assert texts.messages == (Message("user", "2 + 2?"), Message("assistant", "4", "Two and two."))
    assert lists.messages[-1] == Message("assistant", "No, 4.", "Two and two.")
    assert lists.untrained == {1} and not texts.untrained
    assert [tool.name for tool in (*shop.tools, *sharegpt.tools)] == ["stock", "stock"]


def test_the_marked_text_is_what_is_shown(conversations: list[Conversation]) -> None:
    from sft.show import marked

    chat = Chat(train_tokenizer(["text"], 384, NemotronFormat()), NemotronFormat())
    (example,) = re.findall(r"```text\n(.*?)\n```", README, re.DOTALL)
    assert marked(token_row(conversations[1], chat, make_config()), chat, in_colour=False) == example


def test_the_mixture_is_divided_as_the_table_says() -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    sft = SftConfig.model_validate(yaml.safe_load(example)["sft"])
    assert [source.name for source in sft.sources] == [
        "tools.jsonl", "user/name", "gold conversations", "rollouts of runs/quickstart"
    ]  # fmt: skip
    # 300 steps of 32: 600 are from tools.jsonl; of the other 9,000 rollouts would give 1,800, but have only 4 times 100
    assert rows_by_source([300, 5000, 20_000, 100], sft) == [600, 3225, 5375, 400]


@pytest.mark.slow
def test_the_commands_train_and_show_the_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_policy("qwen3", tmp_path / "models/smollm2")
    (stage,) = re.findall(r"\n((?:    .*\n)*    sft: \{data: rows.jsonl.*\n)", README)
    (tmp_path / "stage.yaml").write_text(textwrap.dedent(stage))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    commands = [shlex.split(line, comments=True) for line in re.findall(r"^    python -m sft (.*)$", README, re.M)]
    mine = [words for words in commands if words[:2] in (["train", "stage.yaml"], ["show", "stage.yaml"])]
    assert [words[0] for words in mine] == ["train", "show", "train"]
    told = []
    for words in mine:
        done = CliRunner().invoke(app, [*words, "sft.num_steps=2", "sft.batch_size=2", "policy.max_tokens=1024"])
        assert done.exit_code == 0, done.output
        told.append(done.output)
    assert "rows.jsonl: 4 conversations" in told[0].replace("\n", " ")
    assert "rows.jsonl, row 4" in told[1] and "⟦Three." in told[1]
    lines = [json.loads(line) for line in (tmp_path / "runs/stage/sft/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "heldout_loss" in line] == [2]


def test_every_key_that_is_read_is_in_the_table() -> None:
    from sft.messages import REASONING_KEYS, ROLES

    named = set(re.findall(r"`(\w+)`", README))
    assert {*ROLES, *REASONING_KEYS, "weight", "effort", "tools", "tool_calls", "tool_call_id"} <= named
