"""Single turns of an expert's conversations: rows from conversations, rewards, and the chain to a curriculum."""

import itertools
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from envs import __main__ as envs_main
from envs.commands import evaluate
from envs.json_lines import JsonLineError
from envs.messages import Message, Reply, ToolCall
from envs.pivots import PivotError, PivotTurn, make_rows, read_pivots
from envs.text_env import EnvironmentOptionError
from envs.tool_use.pivot import Pivot
from rl.config.environments import CurriculumConfig, EnvironmentConfig
from rl.tasks.curriculum import Curriculum

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer", "default": 1}},
            "required": ["city"],
        },
    },
}


def call(*cities: str, **more: Any) -> dict[str, Any]:
    calls = [
        {
            "id": city,
            "type": "function",
            "function": {"name": "weather", "arguments": json.dumps({"city": city, **more})},
        }
        for city in cities
    ]
    return {"role": "assistant", "content": None, "tool_calls": calls}


def talk(question: str) -> list[dict[str, Any]]:
    return [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": question},
        {**call("Rome", "Oslo"), "reasoning_content": "Two cities."},
        {"role": "tool", "tool_call_id": "Rome", "content": "sun"},
        {"role": "tool", "tool_call_id": "Oslo", "content": "snow"},
        {"role": "assistant", "content": "<think>\nEasy.\n</think>\n\nSun and snow."},
        {"role": "assistant", "content": "Anything else?"},
        {"role": "user", "content": "Thanks"},
        {"role": "assistant", "content": "Bye", "weight": 0},
    ]


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def row(question: str = "Rome and Oslo?", **more: Any) -> dict[str, Any]:
    return {"messages": talk(question), "tools": [TOOL], **more}


def turns_of(folder: Path, *rows: dict[str, Any]) -> list[PivotTurn]:
    return read_pivots(write(folder / "pivots.jsonl", *make_rows(write(folder / "talks.jsonl", *rows))))


def test_each_reply_to_user_or_tool_is_a_turn(tmp_path: Path) -> None:
    turns = turns_of(tmp_path, row(), row(), row("Else?"))
    assert [len(turn.prompt) for turn in turns] == [2, 5] * 3
    first, second = turns[:2]
    cities = (ToolCall("weather", {"city": "Rome"}), ToolCall("weather", {"city": "Oslo"}))
    assert first.action == Reply("", "Two cities.", cities)
    assert second.action == Reply("Sun and snow.", "Easy.")
    assert [message.role for message in second.prompt] == ["system", "user", "assistant", "tool", "tool"]
    assert second.prompt[-1] == Message("tool", "snow", name="weather")
    assert len({turn.key for turn in turns}) == 6
    assert len({turn.split for turn in turns[:4]}) == 1  # the same opening


def as_objects() -> list[dict[str, Any]]:
    """The conversation with arguments as objects, as some files have them."""
    messages = json.loads(json.dumps(talk("Rome and Oslo?")))
    for one in messages[2]["tool_calls"]:
        one["function"]["arguments"] = json.loads(one["function"]["arguments"])
    return messages


def test_arguments_may_be_objects(tmp_path: Path) -> None:
    objects, texts = turns_of(tmp_path, row(messages=as_objects())), turns_of(tmp_path, row())
    assert objects == texts


def test_calls_and_tools_may_be_as_rollouts_have_them(tmp_path: Path) -> None:
    messages = as_objects()
    messages[2]["tool_calls"] = [one["function"] for one in messages[2]["tool_calls"]]
    messages[3:5] = [{"role": "tool", "name": "weather", "content": one["content"]} for one in messages[3:5]]
    assert turns_of(tmp_path, row(messages=messages, tools=[TOOL["function"]])) == turns_of(tmp_path, row())


def test_tools_and_their_parameters_may_be_json_text(tmp_path: Path) -> None:
    function = TOOL["function"]
    for tools in (
        json.dumps([TOOL]),
        [json.dumps(TOOL)],
        [{**function, "parameters": json.dumps(function["parameters"])}],
    ):
        assert turns_of(tmp_path, row(tools=tools)) == turns_of(tmp_path, row())
    assert len(turns_of(tmp_path, row(tools=[{"name": "weather", "parameters": "{}"}]))) == 2
    required = [{**function, "parameters": {**function["parameters"], "required": [{}, "city"]}}]
    assert len(turns_of(tmp_path, row(tools=required))) == 2


def test_results_that_came_in_another_order_keep_their_names(tmp_path: Path) -> None:
    messages = as_objects()
    messages[2]["tool_calls"][1]["function"]["name"] = "news"
    messages[3], messages[4] = messages[4], messages[3]
    news = {"type": "function", "function": {**TOOL["function"], "name": "news"}}
    _, second = turns_of(tmp_path, row(messages=messages, tools=[TOOL, news]))
    assert [(told.name, told.content) for told in second.prompt[-2:]] == [("news", "snow"), ("weather", "sun")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"messages": "hello"}, r"talks\.jsonl, line 1: messages and tools must be as in a chat completion"),
        ({"messages": [{"role": "king", "content": "a"}]}, "has the role 'king'"),
        ({"messages": [{"role": "user", "content": "a"}, call("Rome", days=float("nan"))]}, r"cannot be compared: nan"),
        (
            {"tools": []},
            r"line 1, messages\[2\]: the expert calls 'weather', which is not among the row's tools \(none\)",
        ),
        ({"tools": [{"type": "function"}]}, "KeyError: 'name'"),
        ({"tools": [{"name": 5}]}, r"line 1: .*a tool needs a name as text and parameters as an object, got .*5"),
        ({"tools": [{"name": "weather", "parameters": [1]}]}, r"line 1: .*parameters as an object"),
        ({"tools": [{"name": "weather", "parameters": "{"}]}, r"line 1: messages and tools must be as in a chat"),
        ({"tools": "weather"}, r"line 1: messages and tools must be as in a chat"),
        ({"tools": 5}, r"line 1: messages and tools must be as in a chat"),
    ],
)
def test_a_wrong_conversation_is_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(PivotError, match=message):
        turns_of(tmp_path, row(**change))
    wrong = json.loads(json.dumps(talk("a")))
    wrong[2]["tool_calls"][0]["function"]["arguments"] = "[1]"
    with pytest.raises(PivotError, match="the arguments of a call must be a JSON object"):
        turns_of(tmp_path, row(messages=wrong))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "test"}, "line 1: prompt must be a list of messages, and split train or heldout; write such a file"),
        ({"prompt": []}, "expert must be an assistant's message that follows"),
        ({"expert": {"role": "user", "content": "a"}}, "expert must be an assistant's message"),
        ({"tools": []}, "which is not among the row's tools"),
    ],
)
def test_a_wrong_row_is_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    turn, _ = make_rows(write(tmp_path / "talks.jsonl", row()))
    path = write(tmp_path / "pivots.jsonl", {**turn, **change})
    with pytest.raises(PivotError, match=message):
        Pivot().reset(seed=0, options={"rows": str(path)})
    with pytest.raises(JsonLineError, match=r"line 1 must have expert"):
        Pivot().reset(seed=0, options={"rows": str(write(tmp_path / "other.jsonl", {"prompt": [], "tools": []}))})


def opened(tmp_path: Path, seed: int, **options: Any) -> Pivot:
    rows = [{**turn, "split": "train"} for turn in make_rows(write(tmp_path / "talks.jsonl", row()))]
    env = Pivot()
    env.reset(seed=seed, options={"rows": str(write(tmp_path / "pivots.jsonl", *rows)), **options})
    return env


def parts(env: Pivot, text: str = "", *calls: ToolCall, malformed: str = "") -> dict[str, float]:
    return env.step(Reply(text, "", calls, malformed))[4]["reward_parts"]


ROME, OSLO = ToolCall("weather", {"city": " Rome", "days": 1.0}), ToolCall("weather", {"city": "Oslo", "days": None})


def test_a_turn_is_right_if_it_does_what_the_expert_did(tmp_path: Path) -> None:
    env = opened(tmp_path, 0)
    assert env.step(env.gold_reply())[1:4] == (1.0, True, False)
    assert parts(env, "Let me see.", OSLO, ROME) == {"right": 1.0}
    assert parts(env, "", ROME) == {"right": 0.0, "wrong_number_of_calls": 0.0}
    assert parts(env, "", ROME, ToolCall("weather", {"city": "oslo"})) == {"right": 0.0, "wrong_value": 0.0}
    assert parts(env, "Sun.") == {"right": 0.0, "no_call": 0.0}
    assert parts(env, "", ROME, ToolCall("wether", {})) == {"right": 0.0, "wrong_function": 0.0}
    lax = opened(tmp_path, 0, texts="words")
    assert parts(lax, "", ROME, ToolCall("weather", {"city": "OSLO."})) == {"right": 1.0}


def test_where_the_expert_answered_any_text_without_a_call_is_right(tmp_path: Path) -> None:
    env = opened(tmp_path, 1)
    assert parts(env, "Whatever.") == parts(env, env.gold_reply().text) == {"right": 1.0}
    assert parts(env, " ") == {"right": 0.0, "no_answer": 0.0}
    assert parts(env, "Sun.", ROME) == {"right": 0.0, "unexpected_call": 0.0}
    assert parts(env, "Sun.", malformed="no end") == {"right": 0.0, "unexpected_call": 0.0}


def test_seeds_play_each_row_once_and_then_anew(tmp_path: Path) -> None:
    assert [opened(tmp_path, seed)._turn.action.text for seed in range(4)] == ["", "Sun and snow."] * 2
    with pytest.raises(EnvironmentOptionError, match="texts must be one of exact, spaces, words"):
        opened(tmp_path, 0, texts="loose")


def test_the_built_in_turns_call_more_than_they_answer() -> None:
    env, seen = Pivot(), defaultdict(set)
    for split, seed in itertools.product(("train", "heldout"), range(300)):
        seen[split].add(repr(env.reset(seed=seed, options={"split": split})[0]))
        if env.gold_reply().tool_calls:
            seen["calls"].add(f"{split} {seed}")
    assert len(seen["train"]) > 100 and not seen["train"] & seen["heldout"]
    assert 400 < len(seen["calls"]) < 590


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["envs", *arguments])
    with pytest.raises(SystemExit) as end:
        envs_main.main()
    assert not end.value.code


def test_from_conversations_to_the_pivots_that_a_curriculum_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = [f"{mood} {number}" for mood in ("easy", "hard", "never") for number in range(8)]
    write(tmp_path / "talks.jsonl", *map(row, asked))
    run(monkeypatch, "pivots", "talks.jsonl", "--out", "pivots.jsonl")
    told = capsys.readouterr().out
    turns = read_pivots(Path("pivots.jsonl"))
    num = sum(turn.split == "train" for turn in turns)
    assert f"48 turns, 24 with calls and 24 answers: {num} for training, {48 - num} held out" in told
    assert f"python -m envs eval tools/Pivot-v0 rows=pivots.jsonl --policy FOLDER --split train -n {num} -k 8" in told

    tries: dict[str, itertools.count[int]] = defaultdict(itertools.count)

    def ask(client: Any, endpoint: Any, tools: Any, messages: list[Message]) -> Reply:
        """Easy questions get the right calls, hard ones each fourth time."""
        question = messages[1].content
        if len(messages) > 2:
            return Reply("Sun.")
        is_right = "easy" in question or ("hard" in question and next(tries[question]) % 4 == 0)
        return Reply("", "", (OSLO, ROME) if is_right else ())

    monkeypatch.setattr(evaluate, "ask", ask)
    played = f"eval tools/Pivot-v0 rows=pivots.jsonl --model m --split train -n {num} -k 8 --out played.jsonl"
    run(monkeypatch, *played.split())
    run(monkeypatch, "profile", "played.jsonl", "--out", "profile.jsonl", "--max-mean", "0.6")
    calls = [turn for turn in turns if turn.split == "train" and turn.action.tool_calls]
    hard = [turn for turn in calls if "hard" in turn.prompt[1].content]
    assert f"{len(hard)} of {num} tasks are saved: rewards differ, mean at most 0.6" in capsys.readouterr().out
    curriculum = Curriculum(
        "tools/Pivot-v0", EnvironmentConfig(curriculum=CurriculumConfig(profile=Path("profile.jsonl"), num_steps=10))
    )
    assert {task.pass_rate for task in curriculum.arms} == {0.25}
    env = Pivot()
    drawn = [env.reset(seed=task.seed, options=dict(task.options))[1]["key"] for task in curriculum.arms]
    assert sorted(drawn) == sorted(turn.key for turn in hard)


def test_conversations_without_a_call_and_profiles_without_a_pivot_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(
        tmp_path / "talks.jsonl",
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    )
    task = {"env_id": "tools/Pivot-v0", "seed": 0, "split": "train", "options": {}}
    write(tmp_path / "played.jsonl", *({"task": task, "messages": [], "reward": 1.0} for _ in range(4)))
    for arguments, message in (
        (["pivots", "talks.jsonl", "--out", "x.jsonl"], "has no assistant's message with tool_calls"),
        (
            ["profile", "played.jsonl", "--out", "x.jsonl", "--max-mean", "0.5"],
            "none of 1 tasks has tries of different",
        ),
    ):
        monkeypatch.setattr(sys, "argv", ["envs", *arguments])
        assert envs_main.main() == 2
        assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "x.jsonl").exists()
