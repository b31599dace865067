"""Whatever a policy writes is its own doing: random and hostile replies in every environment and chat format."""

import io
import random
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from envs.commands.view import write_page
from envs.messages import Message, ToolCall
from envs.registry import environment_ids
from rl.runs.folder import RunFolder
from rl.runs.inspect import show_rollouts
from rl.runs.report import write_report
from rl.runs.tracker import Tracker
from rl.runs.tracking import step_metrics
from tests import hostile_replies as hostile
from tests import makers
from tests.hostile_play import CHATS, Table, gold_text
from tests.test_judge import judge  # noqa: F401 the fixture

NEED_A_SERVER = {"other/Mcp-v0", "other/NemoGym-v0", "other/OpenEnv-v0", "other/Verifiers-v0"}
SLOW_TO_OPEN = {"math/GradeSchool-v0", "math/Competition-v0", "other/ReasoningGym-v0", "code/HumanEval-v0"}
ENV_IDS = [env_id for env_id in environment_ids() if env_id not in NEED_A_SERVER and "/" in env_id]
WITH_CODE = ["code/Functions-v0", "code/HumanEval-v0", "code/Programs-v0", "code/Repair-v0"]
WITH_TOOLS = [env_id for env_id in ENV_IDS if env_id.startswith("tools/")]
OPTIONS: dict[str, dict[str, Any]] = {"other/Gymnasium-v0": {"turns": 4}}

pytestmark = pytest.mark.usefixtures("judge")


def seeded(env_id: str) -> random.Random:
    return random.Random(zlib.crc32(env_id.encode()))


def play_each(table: Table, replies: list[str], num_turns: int = 3) -> None:
    """Each reply is played in a rollout; its later turns say the replies after it."""
    num = 2 if table.task.env_id == "chat/Compared-v0" else 1
    for place in range(0, len(replies), num_turns):
        later = iter(replies[place : place + num_turns])
        table.play(lambda env, later=later: table.thought(next(later, "")), num)


def play_random(table: Table, rng: random.Random, num: int) -> None:
    """Ids, texts and spoiled gold replies."""
    members = 2 if table.task.env_id == "chat/Compared-v0" else 1
    for _ in range(num):
        table.play(lambda env: hostile.random_ids(rng), members)
        table.play(lambda env: table.thought(hostile.random_text(rng)), members)
        table.play(lambda env: hostile.spoiled(gold_text(env, table.chat, table.budget), rng), members)


@pytest.mark.parametrize("env_id", [env_id for env_id in ENV_IDS if env_id not in SLOW_TO_OPEN])
def test_a_handful_of_hostile_replies(env_id: str) -> None:
    rng, table = seeded(env_id), Table(env_id, **OPTIONS.get(env_id, {}))
    play_random(table, rng, 1)
    play_each(table, [*rng.sample(hostile.SHORT_TEXTS, 2), rng.choice(hostile.LONG_TEXTS)])
    if env_id in WITH_CODE:
        play_each(table, rng.sample(hostile.code_replies(), 2))
    if env_id in WITH_TOOLS:
        play_each(table, rng.sample(hostile.broken_calls(table.made[0].tools), 3))
        play_each(table, rng.sample(list(hostile.calls_of(table.made[0].tools, rng)), 6))


def tables(env_id: str) -> Iterator[Table]:
    """The environment in every chat format that can carry it, with every kind of budget."""
    has_tools = env_id in WITH_TOOLS
    for name, chat in CHATS.items():
        if chat.has_tools or not has_tools:
            for budget in ("unlimited", "off", 20) if chat.has_thinking else ("unlimited",):
                yield Table(env_id, name, budget, **OPTIONS.get(env_id, {}))


@pytest.mark.slow
@pytest.mark.parametrize("env_id", ENV_IDS)
def test_many_hostile_replies_in_every_chat_format(env_id: str) -> None:
    rng = seeded(env_id)
    for table in tables(env_id):
        play_random(table, rng, 3)
    table = Table(env_id, **OPTIONS.get(env_id, {}))
    play_each(table, [*hostile.SHORT_TEXTS, *rng.sample(hostile.LONG_TEXTS, 6)])


@pytest.mark.slow
@pytest.mark.parametrize("env_id", WITH_CODE)
def test_programs_that_misbehave(env_id: str) -> None:
    table = Table(env_id, **OPTIONS.get(env_id, {}))
    play_each(table, seeded(env_id).sample(hostile.code_replies(), 24))
    play_each(table, [hostile.fenced(hostile.ENDLESS[-1])])


@pytest.mark.slow
@pytest.mark.parametrize("env_id", WITH_TOOLS)
def test_calls_that_no_tool_takes(env_id: str) -> None:
    rng, table = seeded(env_id), Table(env_id, **OPTIONS.get(env_id, {}))
    play_random(table, rng, 1)
    tools = table.made[0].tools
    calls = list(hostile.calls_of(tools, rng))
    play_each(table, [*hostile.broken_calls(tools), *rng.sample(calls, min(len(calls), 100))], 5)


@pytest.mark.slow
def test_code_in_a_tool_that_misbehaves_and_calls_that_never_end_together() -> None:
    table = Table("tools/Python-v0")
    codes = [*hostile.CODE, *(f"print(repr({value}))" for value in hostile.RETURNS)]
    play_each(table, [hostile.call("run", [("code", code)]) for code in codes if "\ud800" not in code], 5)
    play_each(table, ["\n".join([hostile.call("run", [("code", "while True: pass")])] * 100)])


@pytest.mark.slow
def test_a_program_that_waits_in_every_case_ends_before_its_step_must() -> None:
    play_each(Table("code/Programs-v0"), [hostile.fenced("import time\ntime.sleep(4)\nprint(1)")])


def test_a_gold_reply_is_what_its_environment_pays_for_here_too() -> None:
    """So the replies above do reach the environments."""
    for name, env_id in (
        ("nemotron", "tools/Store-v0"),
        ("nemotron", "math/Arithmetic-v0"),
        ("template", "math/Countdown-v0"),
    ):
        table = Table(env_id, name)
        (rollout,) = table.play(lambda env, table=table: gold_text(env, table.chat, table.budget))
        assert rollout.reward == pytest.approx(1.0)


@pytest.mark.slow
def test_rollouts_with_odd_text_are_shown_reported_and_viewed(tmp_path: Path) -> None:
    config = makers.make_run_config(tmp_path / "run")
    odd = [
        *hostile.SHORT_TEXTS,
        "\x1b[2J\x1b]0;title\x07",
        "[bold]",
        "[/]",
        "</script><b>",
        "%s {0} $$",
        "\\ud800",
        "\ud800",
    ]
    groups = []
    for text in odd:
        call = ToolCall(text, {text: [text, {text: 10**400}]})
        messages = tuple(Message(role, text, text, (call,), text) for role in ("system", "user", "assistant", "tool"))
        for reward, outcome in ((1.0, "ok"), (None, "env_error")):
            parts = {text: 1.0} if reward else {}
            rollout = makers.make_rollout(reward, outcome, messages=messages, reward_parts=parts, error=text)
            groups.append(makers.group_of(rollout))
    with RunFolder.open(config) as run, Tracker(run, config) as tracker:
        tracker.track(1, step_metrics(groups, makers.make_update(), {"collect": 1.0}, {}))
        tracker.save_rollouts(1, "train", groups)
        tracker.save_rollouts(1, "evaluation", groups)
    shown = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    assert show_rollouts(config.run_dir, num=1_000, console=Console(file=shown, width=80)) == 2 * len(odd)
    shown.flush()
    write_report(config.run_dir).read_text(encoding="utf-8")
    assert f"{4 * len(odd)} rollouts" in write_page(config.run_dir / "rollouts", tmp_path / "page.html")
    assert "</script><b>" not in (tmp_path / "page.html").read_text(encoding="utf-8")
