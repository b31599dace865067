"""Efforts beside thinking budgets: drawn, told as supervised rows tell them, shaped alone, measured, swept, trained."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from envs.messages import Message
from rl.algorithms.shaping import shaped
from rl.algorithms.shaping.effort import Effort
from rl.algorithms.shaping.length import Length
from rl.chat.chat import Chat
from rl.chat.formats.nemotron import NemotronFormat
from rl.config.budgets import budget_text, effort_text, read_budget
from rl.config.environments import BudgetConfig
from rl.config.experiment import ExperimentConfig
from rl.data_types import EFFORTS, Budget, Group
from rl.runs.evaluation import evaluation_metrics
from rl.runs.folder import RunFolder
from rl.runs.saved_rollouts import load_rollouts, write_rollouts
from rl.runs.tracking import rollout_metrics
from rl.tasks.stream import TaskStream
from sft.__main__ import app
from sft.data import gold_conversations, token_row
from sft.rows import read_row
from sft.variations import with_effort
from tests.makers import ARITHMETIC, make_config, make_group
from tests.test_chat import CHAT, adversarial_tokenizer
from tests.test_rl_commands import run
from tests.trained import steps_of, trained

ASK, SAID = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "so", "reasoning_content": "hm"}
TOTAL = "math/RunningTotal-v0"
BUDGETS: tuple[Budget, ...] = ("off", "low", "medium", 12, "unlimited")


def group_with(budget: Budget, rewards: list[float | None], ordinal: int = 0) -> Group:
    group = make_group(rewards, ordinal)
    task = replace(group.task, budget=budget)
    return replace(group, task=task, rollouts=tuple(replace(one, task=task) for one in group.rollouts))


def test_efforts_are_read_and_other_words_refused() -> None:
    assert [read_budget(word) for word in ("low", "efficient", "off", "12")] == ["low", "efficient", "off", 12]
    for word in ("lowest", "none", "-3", True, None):
        with pytest.raises(ValueError, match=r"or an effort \(efficient, .*\), not"):
            read_budget(word)


def test_tasks_draw_efforts_beside_budgets() -> None:
    config = make_config(environments={ARITHMETIC: {"budget": dict.fromkeys(map(str, BUDGETS), 1)}})
    stream = TaskStream(config.environments, 0, 4)
    assert {stream.task(ordinal).budget for ordinal in range(100)} == set(BUDGETS)


@pytest.mark.parametrize("effort", EFFORTS)
def test_a_task_is_told_its_effort_as_the_rows_of_the_supervised_stage_tell_it(effort: Any) -> None:
    dialogue = CHAT.begin([Message("user", "hi")], (), effort)
    row = with_effort(read_row({"messages": [ASK, SAID]}, "here", has_thinking=True), effort)
    trained_ids, _ = CHAT.conversation(row.messages, (), row.budget)
    assert dialogue.prompt_ids == trained_ids[: len(dialogue.prompt_ids)]
    assert f"hi\n\n{{reasoning effort: {effort}}}<|im_end|>" in CHAT.text(dialogue.prompt_ids)
    assert dialogue.thinking_limit(BudgetConfig(), 100) is None
    assert budget_text(effort) == effort_text(effort) and not budget_text("off") and not budget_text("unlimited")


def test_the_exported_template_tells_efforts_too() -> None:
    tokenizer = adversarial_tokenizer()
    tokenizer.chat_template = NemotronFormat.template
    chat = Chat(tokenizer, NemotronFormat())
    told: dict[Budget, dict[str, Any]] = {"low": {"reasoning_effort": "low"}, "off": {"reasoning_effort": "none"}}
    told |= {12: {"thinking_budget": 12}, "unlimited": {}}
    for budget, arguments in told.items():
        ids = chat.begin([Message("user", "hi")], (), budget).prompt_ids
        text = tokenizer.apply_chat_template([ASK], tokenize=False, add_generation_prompt=True, **arguments)
        assert text == chat.text(ids)


def test_gold_conversations_draw_efforts_and_tell_them() -> None:
    config = make_config(environments={TOTAL: {"budget": "low"}}, sft={"num_conversations": 4})
    varied = make_config(environments=config.environments, sft={"no_thinking_share": 1, "truncated_share": 1})
    for conversation in gold_conversations(config.model_copy(update={"sft": varied.sft}))[:4]:
        assert conversation.budget == "low" and conversation.messages[-1].reasoning and conversation.cut_at is None
        assert effort_text("low") in CHAT.text(token_row(conversation, CHAT, config).input_ids)


def test_rollouts_become_rows_and_pairs_that_state_their_effort(tmp_path: Path) -> None:
    groups = [group_with(budget, [1.0, 0.0], place) for place, budget in enumerate(("low", 12, "unlimited"))]
    for place, group in enumerate(groups):
        good, bad = group.rollouts
        bad = replace(bad, messages=(*bad.messages[:-1], Message("assistant", "The answer is 5.", "2 + 2 = 5")))
        groups[place] = replace(group, rollouts=(good, bad))
    played, out = tmp_path / "train_000001.jsonl", tmp_path / "rows.jsonl"
    with played.open("w") as file:
        write_rollouts(file, 1, "train", groups)
    assert [one.task.budget for one in load_rollouts(played)] == ["low"] * 2 + [12] * 2 + ["unlimited"] * 2
    # Tasks of one seed and options, but for their efforts: two tasks.
    for options, key in ((("--per-task", "1"), "messages"), (("--pairs",), "prompt")):
        result = CliRunner().invoke(app, ["from-rollouts", str(played), "--out", str(out), *options])
        assert result.exit_code == 0, result.output
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        if key == "messages":
            assert [row.get("effort") for row in rows] == ["low", None]
            assert read_row(rows[0], "here", has_thinking=True).effort == "low"
        else:
            assert [effort_text("low") in row["prompt"][0]["content"] for row in rows] == [True, False]


def test_shapings_of_some_budgets_leave_other_tasks_as_they_are() -> None:
    # 3 tokens of 10, half of which count: 1 + 1 * 0.5 * 0.7.
    only_low = Effort(budgets=("low",), tokens=10, weight=0.5)
    by_marker = Effort(marker="{reasoning effort: medium}", tokens=10, weight=0.5)
    for shaping, paid in ((only_low, "low"), (by_marker, "medium")):
        for budget in BUDGETS:
            (group,) = shaped([group_with(budget, [1.0, None])], {ARITHMETIC: (shaping,)})
            expected = 1.35 if budget == paid else 1.0
            assert [one.reward for one in group.rollouts] == [pytest.approx(expected), None], budget
    rewards = {
        budget: [one.reward for one in shaped([uneven(budget)], {ARITHMETIC: (Length(budgets=(12,)),)})[0].rollouts]
        for budget in BUDGETS
    }
    assert rewards.pop(12) != [1.0, 1.0] and list(rewards.values()) == [[1.0, 1.0]] * 4


def uneven(budget: Budget) -> Group:
    group = group_with(budget, [1.0, 1.0])
    longer = replace(group.rollouts[1], turns=group.rollouts[1].turns * 2)
    return replace(group, rollouts=(group.rollouts[0], longer))


def test_a_shaping_of_a_budget_that_no_task_has_is_refused() -> None:
    tree: dict[str, Any] = {"budget": {"low": 1, "unlimited": 1}, "shaping": [{"budgets": ["low", 12]}]}
    with pytest.raises(ValueError, match=r"shaping\.0\.budgets names 12, which no task has: budget is low, unlimited"):
        make_config(environments={ARITHMETIC: tree})


def test_a_shaping_of_budgets_that_a_curriculum_widens_is_refused() -> None:
    def config(*budgets: Budget) -> ExperimentConfig:
        shaping = [{"budgets": ["low"]}, {"shaping": "budget", "budgets": budgets}]
        narrowing = {"budget": {24: 1, "low": 1, "off": 1}, "budget_curriculum": {"num_steps": 60}, "shaping": shaping}
        return make_config(environments={ARITHMETIC: narrowing}, rollout={"max_reply_tokens": 100})

    with pytest.raises(ValueError, match=r"shaping\.1\.budgets names 24, but budget_curriculum .* until step 60"):
        config("low", 24)
    assert config().environments[ARITHMETIC].shaping[1].budgets == ()
    assert config("low", "off").environments[ARITHMETIC].shaping[1].budgets == ("low", "off")


def test_rewards_and_lengths_are_measured_by_effort() -> None:
    groups = [group_with("low", [1.0, 0.0, None]), group_with("unlimited", [1.0, 1.0], 1)]
    metrics = rollout_metrics(groups)
    assert metrics[f"reward_by_budget/{ARITHMETIC}/low"] == 0.5
    assert metrics[f"reward_by_budget/{ARITHMETIC}/unlimited"] == 1.0
    assert metrics[f"reply_tokens_by_budget/{ARITHMETIC}/low"] == 3.0
    assert not [name for name in rollout_metrics(groups[1:]) if "by_budget" in name]
    # Of the reply's 3 tokens, the reasoning's: "2 + 2 = 4" has 9 characters and "The answer is 4." has 16.
    assert evaluation_metrics(groups)[f"thinking_tokens/{ARITHMETIC}"] == pytest.approx(3 * 9 / 25)


RUN = """
run_dir: {run_dir}
seed: 0
policy: {{build: {{}}}}
environments:
  math/RunningTotal-v0:
    options: {{terse_share: 0.5}}
    budget: {{off: 1, low: 1, medium: 1, 12: 1, unlimited: 1}}
    shaping: [{{shaping: effort, budgets: [low], tokens: 20}}, {{shaping: length, budgets: [medium]}}]
budget: {{grace_tokens: 2, answer_tokens: 8}}
rollout: {{max_reply_tokens: 40, kv_cache_gib: 0.1}}
sft: {{num_steps: 20, num_conversations: 640}}
train: {{num_steps: 2, num_prompts: 8, group_size: 2}}
evaluation: {{num_tasks: 2}}
ray: {{address: local}}
"""


@pytest.mark.slow
def test_one_policy_is_trained_and_evaluated_with_budgets_and_efforts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "run"
    for step in steps_of(trained(RUN.format(run_dir=run_dir), tmp_path)):
        assert step["masked_rows"] == step["budget_violations"] == 0
        assert step["update/mismatch"] < 1.05
    rollouts = [one for path in sorted((run_dir / "rollouts").glob("train_*")) for one in load_rollouts(path)]
    assert {one.task.budget for one in rollouts} == set(BUDGETS)
    assert {one.task.budget for one in rollouts if any(turn.num_forced for turn in one.turns)} <= {12}
    assert run(monkeypatch, "evaluate", tmp_path / "experiment.yaml", "--budgets", ",".join(map(str, BUDGETS))) == 0
    found = json.loads(RunFolder(run_dir).evaluation_file.read_text())["budgets"]
    assert list(found) == [str(budget) for budget in BUDGETS]
    assert found["off"][f"thinking_tokens/{TOTAL}"] == 0 < found["low"][f"thinking_tokens/{TOTAL}"]
    assert (run_dir / "figures" / "budgets.png").exists()
