"""The page on preference pairs is true: its rows are read, its stages trained, and its commands end well."""

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from envs.messages import Message
from rl.config.checkpoint_defaults import CHECKPOINT_DEFAULTS
from rl.config.preferences import DpoConfig
from rl.data_types import Group
from rl.runs.saved_rollouts import write_rollouts
from sft.pairs import read_pair
from tests.families import write_policy
from tests.makers import group_of, make_rollout, make_task

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "preferences.md").read_text(encoding="utf-8")
SMALL = {"dpo": ("dpo.num_steps=2", "dpo.batch_size=4"), "reward-model": ("reward_model.num_steps=2",)}


def test_each_form_has_an_example_that_is_read() -> None:
    texts, whole = (json.loads(text) for text in re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL))
    pair = read_pair(texts, "page", has_thinking=True)
    assert pair.chosen.messages == (Message("user", "2 + 2?"), Message("assistant", "4", "Two and two."))
    assert pair.rejected.messages[1].content == "5"
    pair = read_pair(whole, "page", has_thinking=True)
    assert [message.role for message in pair.chosen.messages] == ["user", "assistant", "tool", "assistant"]
    assert not pair.chosen.untrained and pair.chosen.tools[0].name == "stock"


def test_the_defaults_are_those_of_the_table() -> None:
    rows = dict(re.findall(r"^\| `dpo\.(\w+)`.*? \| (\S+?)[ ,|]", PAGE, re.MULTILINE))
    dpo = DpoConfig(data=Path("x"))
    assert {key: float(value) for key, value in rows.items() if value != "null"} == {
        key: float(getattr(dpo, key))
        for key in ("beta", "sft_coefficient", "learning_rate", "num_steps", "heldout_share")
    }
    assert f"{dpo.num_steps}, {dpo.batch_size}" in PAGE and "3e-6 for pretrained" in PAGE
    assert CHECKPOINT_DEFAULTS["dpo.learning_rate"].value == 3e-6


@pytest.mark.slow
def test_the_measures_are_those_of_the_table() -> None:
    from sft.dpo import MEASURES as OF_DPO
    from sft.reward_model import MEASURES as OF_REWARD_MODELS

    section = PAGE.partition("## 3.")[2].partition("## 4.")[0]
    cells = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    named = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    assert named == {"loss", *OF_DPO.values(), *OF_REWARD_MODELS.values()}


def group(ordinal: int) -> Group:
    task = replace(make_task(ordinal), seed=ordinal)
    asked = Message("user", f"{ordinal} + 1?")
    replies = ((f"{ordinal + 1}", 1.0), ("I do not know.", 0.0))
    return group_of(
        *(
            replace(make_rollout(reward, task=task), messages=(asked, Message("assistant", text, "Let me see.")))
            for text, reward in replies
        )
    )


@pytest.mark.slow
def test_the_commands_train_what_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    (tmp_path / "runs/quickstart/rollouts").mkdir(parents=True)
    with (tmp_path / "runs/quickstart/rollouts/train_000001.jsonl").open("w", encoding="utf-8") as file:
        write_rollouts(file, 1, "train", [group(ordinal) for ordinal in range(10)])
    write_policy("nemotron", tmp_path / "runs/quickstart/sft")
    write_policy("llama", tmp_path / "models/smollm2-135m")
    for name, text in re.findall(r"^`(\w+\.yaml)`:\n\n```yaml\n(.*?)```", PAGE, re.MULTILINE | re.DOTALL):
        (tmp_path / name).write_text(text)
    commands = [shlex.split(line) for line in re.findall(r"^    python (-m .*)$", PAGE, re.MULTILINE)]
    assert [words[2] for words in commands] == ["from-rollouts", "dpo", "train", "reward-model"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for words in commands:
        more = (
            ("--dry-run", "ray.address=local", "policy.max_tokens=1024")
            if words[2] == "train"
            else SMALL.get(words[2], ())
        )
        done = subprocess.run(
            [sys.executable, *words, *more], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    for folder in ("preferences/dpo", "reward/reward_model"):
        lines = [json.loads(line) for line in (tmp_path / "runs" / folder / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines if "heldout_accuracy" in line] == [0, 2]
