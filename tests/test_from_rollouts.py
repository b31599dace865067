"""Rows from rollouts: which are taken, that the supervised stage reads them, and what is refused."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from typer.testing import CliRunner

from envs.judge_client import MODEL, URL
from envs.messages import Message, ToolCall, ToolSpec
from envs.text_env import TextEnv
from rl.data_types import Group, Outcome, Rollout
from rl.runs.saved_rollouts import write_rollouts
from sft.__main__ import app
from sft.from_rollouts import left_out, played_tasks
from sft.pairs import read_pair
from sft.rows import read_row
from tests.makers import ARITHMETIC, STORE, group_of, make_rollout, make_task, make_turn


def wrote(text: str, reward: float | None, ordinal: int = 0, **changes: Any) -> Rollout:
    messages = (Message("user", f"task {ordinal}"), Message("assistant", text, "Let me see."))
    task = replace(make_task(ordinal), seed=ordinal)
    outcome = "ok" if reward is not None else "env_error"
    return replace(make_rollout(reward, outcome, task=task), messages=messages, **changes)


def saved(folder: Path, *groups: Group) -> Path:
    path = folder / "train_000001.jsonl"
    with path.open("w", encoding="utf-8") as file:
        write_rollouts(file, 1, "train", groups)
    return path


def rows_of(path: Path, *options: str) -> list[dict[str, Any]]:
    out = path.parent / "out" / "rows.jsonl"
    result = CliRunner().invoke(app, ["from-rollouts", str(path), "--out", str(out), *options], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    print(result.output)
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


def replies(rows: list[dict[str, Any]]) -> list[str]:
    return [row["messages"][-1]["content"] for row in rows]


def test_replies_with_think_tags_in_wrong_places_are_in_no_row_and_no_pair(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As text of a row they would be other tokens than those that were sampled."""
    good, bad = wrote("right", 1.0), wrote("wrong\n</think>\n1", 0.0)
    path = saved(tmp_path, group_of(good, bad, wrote("wrong", 0.5)), group_of(wrote("<think>r</think>a", 1.0, 1)))
    (pair,) = rows_of(path, "--pairs")
    assert (pair["chosen"][0]["content"], pair["rejected"][0]["content"]) == ("right", "wrong")
    assert capsys.readouterr().out.strip().endswith("rollouts left out: 2 with think tags in wrong places")
    assert replies(rows_of(path)) == ["right"]
    assert "left out: 2 with think tags in wrong places, 1 of a lower reward" in capsys.readouterr().out


def test_the_shortest_good_rollout_of_each_training_task_becomes_a_row(tmp_path: Path) -> None:
    heldout = [replace(one, task=replace(one.task, split="heldout")) for one in (wrote("held out", 1.0, 2),)]
    path = saved(
        tmp_path,
        group_of(wrote("a longer answer", 1.0), wrote("short", 1.0), wrote("wrong", 0.0), wrote("", None)),
        group_of(wrote("never right", 0.5, 1)),
        group_of(*heldout),
        group_of(
            wrote("cut", 1.0, 3, outcome=Outcome.TRUNCATED),
            wrote("b", 1.0, 3, malformed_calls={"not_json": 1}),
            wrote("forced", 1.0, 3, outcome=Outcome.BUDGET_HIT),
        ),
    )
    assert left_out(played_tasks(path), 1.0) == {
        "with think tags in wrong places": 0,
        "cut, with an unreadable call, or ended by a budget": 3,
        "of a lower reward": 2,
    }
    (row,) = rows_of(path)
    assert row == {
        "messages": [
            {"role": "user", "content": "task 0"},
            {"role": "assistant", "content": "short", "reasoning": "Let me see."},
        ],
        "tools": [],
        "env_id": ARITHMETIC,
        "seed": 0,
        "reward": 1.0,
    }
    conversation = read_row(row, "here", has_thinking=True)
    assert conversation.messages == wrote("short", 1.0).messages and conversation.budget == "unlimited"
    assert replies(rows_of(path, "--reward-min", "0.5", "--per-task", "3")) == [
        "short",
        "a longer answer",
        "never right",
    ]


def test_diverse_rollouts_have_least_in_common_with_those_taken(tmp_path: Path) -> None:
    texts = ["one two three four", "one two three four five", "six seven eight nine ten eleven"]
    path = saved(tmp_path, group_of(*(wrote(text, 1.0) for text in (*texts, texts[0]))))
    assert replies(rows_of(path, "--per-task", "2")) == texts[:2]
    assert replies(rows_of(path, "--per-task", "2", "--choose", "diverse")) == [texts[0], texts[2]]
    assert replies(rows_of(path, "--per-task", "9")) == texts  # equal ones are taken once


def test_calls_of_tools_and_their_descriptions_are_kept(tmp_path: Path) -> None:
    messages = (
        Message("user", "How many A7?"),
        Message("assistant", "", "", (ToolCall("stock", {"sku": "A7"}),)),
        Message("tool", "3", name="stock"),
        Message("assistant", "Three."),
        Message("user", "Thank you."),
    )
    rollout = replace(make_rollout(1.0, task=make_task(env_id=STORE)), messages=messages)
    rollout = replace(rollout, turns=(make_turn(), make_turn(is_start=False)))
    (row,) = rows_of(saved(tmp_path, group_of(rollout)))
    assert row["tools"] and {"name", "description", "parameters"} == row["tools"][0].keys()
    assert read_row(row, "here", has_thinking=True).messages == messages[:-1]


class LateTools(TextEnv):
    """Has its tools once its server answered; its `reset` is asynchronous, as those of the adapters."""

    closed: ClassVar[list[str]] = []

    async def reset(self, *, seed: int | None = None, options: Any = None) -> Any:  # type: ignore[override]
        self.key = f"task {seed}"
        self.tools = (ToolSpec("look", "Look.", {"type": "object", "properties": {}}),)
        return (Message("user", self.key),), {}

    def close(self) -> None:
        self.closed.append(self.key)


def test_an_environment_with_an_asynchronous_reset_gives_its_tools(tmp_path: Path) -> None:
    task = make_task(env_id="tests.test_from_rollouts:LateTools")
    rollout = replace(make_rollout(1.0, task=task), messages=wrote("well", 1.0).messages)
    (row,) = rows_of(saved(tmp_path, group_of(rollout)))
    assert [tool["name"] for tool in row["tools"]] == ["look"]
    assert LateTools.closed == ["task 7"]


@pytest.mark.parametrize("env_id", ["chat/Judged-v0", "chat/Compared-v0", "chat/Safety-v0"])
def test_tasks_that_a_judge_scored_need_no_judge_to_become_rows(
    env_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(URL, raising=False)
    monkeypatch.setenv(MODEL, "mine")
    task = make_task(env_id=env_id)
    members = [replace(wrote(text, reward), task=task) for text, reward in (("well", 1.0), ("badly", 0.0))]
    path = saved(tmp_path, group_of(*members))
    assert replies(rows_of(path)) == ["well"] and len(rows_of(path, "--pairs")) == 1
    assert URL not in os.environ and os.environ[MODEL] == "mine"


def test_replies_of_the_opening_are_read_and_not_trained(tmp_path: Path) -> None:
    good, bad = wrote("good", 1.0), wrote("bad", 0.0)
    opening = (Message("user", "Hi"), Message("assistant", "Hello."))
    path = saved(tmp_path, group_of(*(replace(one, messages=(*opening, *one.messages)) for one in (good, bad))))
    (row,) = rows_of(path)
    conversation = read_row(row, "here", has_thinking=True)
    assert conversation.untrained == {1} and len(conversation.messages) == 4
    (pair,) = rows_of(path, "--pairs")
    assert len(pair["prompt"]) == 3 and [one["content"] for one in pair["rejected"]] == ["bad"]


def test_pairs_are_the_best_beside_the_worst(tmp_path: Path) -> None:
    path = saved(
        tmp_path,
        group_of(wrote("best", 1.0), wrote("also best", 1.0), wrote("worst", 0.0), wrote("middle", 0.5)),
        group_of(wrote("equal", 1.0, 1), wrote("as good", 1.0, 1)),
        group_of(wrote("better", 0.6, 2), wrote("less", 0.5, 2)),
    )
    first, second = rows_of(path, "--pairs")
    assert first["prompt"] == [{"role": "user", "content": "task 0"}]
    assert (first["chosen"][0]["content"], first["rejected"][0]["content"]) == ("best", "worst")
    assert (first["reward"], first["rejected_reward"]) == (1.0, 0.0)
    assert second["chosen"][0]["content"] == "better"
    assert len(rows_of(path, "--pairs", "--margin-min", "0.5")) == 1


def test_where_groups_are_scored_the_best_and_the_worst_are_of_one_group(tmp_path: Path) -> None:
    """Rewards of chat/Compared-v0 say how a reply compares with those of its group, and nothing about other groups."""
    groups = []
    for number, members in enumerate(([("a", 0.9), ("b", 0.6)], [("c", 0.5), ("d", 0.1)], [("e", 0.7), ("f", 0.65)])):
        task = make_task(env_id="chat/Compared-v0")
        played = [replace(wrote(text, reward), task=task, group_id=f"0-{number}") for text, reward in members]
        groups.append(group_of(*played))
    (pair,) = rows_of(saved(tmp_path, *groups), "--pairs")
    assert (pair["chosen"][0]["content"], pair["rejected"][0]["content"]) == ("c", "d")  # the greatest difference
    other = [
        replace(group, rollouts=tuple(replace(one, task=make_task()) for one in group.rollouts)) for group in groups
    ]
    (pair,) = rows_of(saved(tmp_path, *other), "--pairs")
    assert (pair["chosen"][0]["content"], pair["rejected"][0]["content"]) == ("a", "d")


def test_a_text_that_is_the_best_and_the_worst_is_no_pair(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(
        tmp_path,
        group_of(wrote("same", 1.0), wrote("same", 0.0)),
        group_of(wrote("good", 1.0, 1), wrote("bad", 0.0, 1)),
    )
    (pair,) = rows_of(path, "--pairs")
    assert pair["chosen"][0]["content"] == "good"
    assert "tasks left out: 1 whose best and worst replies are the same text" in capsys.readouterr().out
    assert read_pair(pair, "here", has_thinking=True)


def test_a_run_without_good_rollouts_is_told_and_leaves_no_file(tmp_path: Path) -> None:
    path = saved(tmp_path, group_of(wrote("wrong", 0.0)))
    result = CliRunner().invoke(app, ["from-rollouts", str(path), "--out", str(tmp_path / "rows.jsonl")])
    assert result.exit_code != 0 and "no rollout is good enough" in str(result.exception)
    assert not (tmp_path / "rows.jsonl").exists()
    with pytest.raises(Exception, match="neither a file of rollouts"):
        CliRunner().invoke(app, ["from-rollouts", str(tmp_path / "none"), "--out", "x"], catch_exceptions=False)
