"""The rows that envs/README.md shows can be played."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from envs.chat.genrm import GenRM
from envs.chat.safety import Safety
from envs.gold import gold_conversation
from envs.pivots import make_rows
from envs.registry import make
from envs.text_env import TextEnv
from envs.tool_use.pivot import Pivot
from tests.test_judge import Judge, judge  # noqa: F401 the fixture


def shown(key: str, repo: Path) -> dict[str, Any]:
    rows = map(json.loads, re.findall(r"```json\n(.*)\n```", (repo / "envs" / "README.md").read_text()))
    return next(row for row in rows if key in row)


@pytest.mark.parametrize(("key", "kind"), [("reply_1", GenRM), ("unsafe", Safety)])
def test_a_row_of_ones_own_is_played(key: str, kind: type[TextEnv], repo: Path, tmp_path: Path, judge: Judge) -> None:  # noqa: F811
    row = {**shown(key, repo), "split": "train"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    env = kind()
    messages, _ = env.reset(seed=0, options={"rows": str(tmp_path / "rows.jsonl")})
    assert row["prompt"] in messages[0].content
    assert env.gold_reply().text


def test_a_conversation_becomes_two_turns(repo: Path, tmp_path: Path) -> None:
    talks, pivots = tmp_path / "talks.jsonl", tmp_path / "pivots.jsonl"
    talks.write_text(json.dumps(shown("messages", repo)))
    rows = make_rows(talks)
    assert [len(row["prompt"]) for row in rows] == [1, 3]
    pivots.write_text("".join(json.dumps(row) + "\n" for row in rows))
    env = Pivot()
    env.reset(seed=0, options={"rows": str(pivots), "split": rows[0]["split"]})
    assert env.step(env.gold_reply())[1] == 1.0


@pytest.mark.parametrize("env_id", ["chat/GenRM-v0", "chat/Safety-v0", "tools/Pivot-v0"])
def test_the_supervised_stage_gets_gold_conversations(env_id: str, judge: Judge) -> None:  # noqa: F811
    for seed in range(10):
        messages = gold_conversation(make(env_id), seed)
        assert messages[-1].role == "assistant" and messages == gold_conversation(make(env_id), seed)
