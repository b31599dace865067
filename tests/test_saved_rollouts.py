"""What is done with rollouts outside of a trainer: playing against an endpoint, profiling, scoring again, looking."""

import io
import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from envs.chat_completions import openai_messages, read_reply
from envs.commands import replay as replaying
from envs.commands.evaluate import Endpoint, evaluate, pass_at
from envs.commands.play import PlayError, play_environment
from envs.commands.profile import ProfileError, print_profile, profile_tasks
from envs.commands.replay import replay, replay_file
from envs.messages import Message, Reply, ToolCall
from envs.rollout_file import RolloutFileError, message_from, message_object, read_rollouts
from envs.scored import scored
from envs.session import EnvFailure
from envs.text_env import TextEnv
from tests.makers import make_run_config, write_run
from tests.saved import saved, write

QUIET = Console(quiet=True)


class Paid(TextEnv):
    """Any reply ends it and earns nothing."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return (Message("user", "Say something."),), {}

    def step(self, action: Reply) -> Any:
        return (), 0.0, True, False, {}


class SaysHalfACharacter(Paid):
    """Says what cannot be written."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return (Message("user", "\ud800"),), {}


def test_messages_survive_being_saved() -> None:
    message = Message("assistant", "text", "why", (ToolCall("find", {"x": [1]}),), "")
    assert message_from(json.loads(json.dumps(message_object(message)))) == message


def test_a_file_a_folder_and_a_run_can_be_read(tmp_path: Path) -> None:
    file = write(tmp_path / "some.jsonl", [saved("math/Arithmetic-v0", 0)] * 2)
    assert len(list(read_rollouts(file))) == len(list(read_rollouts(tmp_path))) == 2
    with file.open("a") as opened:
        opened.write('{"torn')
    assert len(list(read_rollouts(file))) == 2
    run = write_run(make_run_config(tmp_path / "run"), num_steps=2)
    assert {rollout["task"]["env_id"] for rollout in read_rollouts(run)} == {"math/Arithmetic-v0", "tools/Store-v0"}
    with pytest.raises(RolloutFileError, match="is neither a file of rollouts nor a folder with such files"):
        list(read_rollouts(tmp_path / "nowhere"))
    with pytest.raises(RolloutFileError, match=r"line 1 is not a rollout"):
        list(read_rollouts(write(tmp_path / "other.jsonl", [{"a": 1}])))


@pytest.mark.parametrize("env_id", ["math/Arithmetic-v0", "tools/Store-v0", "chat/Appointment-v0", "code/Repair-v0"])
def test_replies_that_are_scored_again_earn_the_same(env_id: str) -> None:
    for seed in range(5):
        again = replay(saved(env_id, seed))
        assert (again.now, again.problem, again.differs) == (1.0, "", False)


def test_a_changed_scorer_and_a_changed_environment_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rollouts = [saved("math/Arithmetic-v0", 0), saved("math/Arithmetic-v0", 1, reward=0.0)]
    rollouts += [saved("math/Arithmetic-v0", 2, reward=None, outcome="env_error")]
    rollouts += [saved("math/Arithmetic-v0", 3) | {"messages": rollouts[0]["messages"]}]
    out = tmp_path / "out.jsonl"
    assert not replay_file(Console(width=200), write(tmp_path / "rollouts.jsonl", rollouts), out)
    printed = capsys.readouterr().out
    assert "seed 1: 0.000 -> 1.000" in printed
    assert "seed 3: the environment opens this task with other messages now" in printed
    assert "4 rollouts: 2 the same, 1 changed, 1 could not be scored" in printed
    assert [json.loads(line)["now"] for line in out.read_text().splitlines()] == [1.0, 1.0, None, None]
    monkeypatch.setattr(replaying, "make", lambda env_id: 1 / 0)
    assert replay(rollouts[0]).problem.startswith("ZeroDivisionError")


def test_what_a_comparison_of_the_group_paid_is_not_scored_again_alone() -> None:
    again = replay(saved("tests.unsound_envs:ForgetsAMember", 0))
    assert again.now is None and again.problem.startswith("its reward came from comparing a group")


def test_calls_that_were_never_played_are_not_played_again() -> None:
    rollout = saved("tools/Store-v0", 0)
    malformed = [
        message_object(Message("assistant", "<tool_call>nonsense")),
        message_object(Message("tool", "error: tool call is not closed")),
    ]
    rollout["messages"][1:1] = malformed
    assert replay(rollout).now == 1.0
    cut_off = message_object(Message("assistant", "", "", (ToolCall("price", {"item": "tea"}),)))
    rollout["messages"] = [*rollout["messages"][:3], cut_off]
    assert replay(rollout).now == 0.0


def test_tasks_are_too_easy_too_hard_or_useful() -> None:
    rewards = {0: [1.0, 1.0], 1: [0.0, 0.0, 0.0], 2: [0.0, 1.0], 3: [1.0], 4: [0.5, 0.5], 5: [None, 1.0, 0.0]}
    rollouts = [
        {"task": {"env_id": "a", "seed": seed, "split": "train", "options": {}}, "reward": reward}
        for seed, tries in rewards.items()
        for reward in tries
    ]
    profiles = {one.seed: one for one in profile_tasks(rollouts)}
    assert {seed: one.kind for seed, one in profiles.items()} == {
        0: "too easy",
        1: "too hard",
        2: "useful",
        3: "too few tries",
        4: "too hard",
        5: "useful",
    }
    assert (profiles[2].mean, profiles[2].deviation, profiles[2].pass_rate) == (0.5, 0.5, 0.5)


@scored(rows=[{"prompt": f"{number}?"} for number in range(50)], reward_range=(0.0, 10.0))
def up_to_ten(reply, row):
    """Pay up to 10."""
    return 10.0 if reply.text == "ten" else 3.0


def test_a_pass_is_the_top_of_the_declared_range() -> None:
    task = {"env_id": "tests.test_saved_rollouts:up_to_ten", "seed": 0, "split": "train", "options": {}}
    (profile,) = profile_tasks([{"task": task, "reward": reward} for reward in (3.0, 10.0)])
    assert (profile.pass_rate, profile.kind) == (0.5, "useful")
    (profile,) = profile_tasks([{"task": task, "reward": reward} for reward in (3.0, 3.0)])
    assert (profile.pass_rate, profile.kind) == (0.0, "too hard")


def test_tries_of_several_policies_and_splits_are_kept_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rollouts = [
        {
            "task": {"env_id": "a", "seed": 0, "split": split, "options": {}},
            "messages": [],
            "step": step,
            "kind": kind,
            "reward": reward,
        }
        for step, split, kind, reward in (
            *((1, "train", "train", 0.0), (1, "train", "train", 0.0)),
            *((2, "train", "train", 1.0), (2, "train", "train", 1.0)),
            *((2, "heldout", "evaluation", 0.0), (2, "heldout", "evaluation", 1.0)),
        )
    ]
    profiles = profile_tasks(rollouts)
    assert {(one.policy, one.split, one.kind) for one in profiles} == {
        ("train step 1", "train", "too hard"),
        ("train step 2", "train", "too easy"),
        ("evaluation step 2", "heldout", "useful"),
    }
    place, out = write(tmp_path / "rollouts.jsonl", rollouts), tmp_path / "new" / "profile.jsonl"
    print_profile(Console(width=200), place, None)
    printed = capsys.readouterr().out
    assert printed.count("train step") == 2 and printed.count("evaluation step 2") == 1
    with pytest.raises(ProfileError, match=r"3 policies .* name it with --policy, such as --policy 'eval"):
        print_profile(QUIET, place, out)
    with pytest.raises(ProfileError, match="no rollouts of policy 'step 9'; it has: train step 1, train step 2"):
        print_profile(QUIET, place, out, "step 9")
    print_profile(QUIET, place, out, "train step 2")
    assert [json.loads(line)["pass_rate"] for line in out.read_text().splitlines()] == [1.0]


def test_rollouts_of_two_models_are_of_two_policies() -> None:
    task = {"env_id": "a", "seed": 0, "split": "train", "options": {}}
    profiles = profile_tasks([{"task": task, "reward": 1.0, "policy": policy} for policy in ("one", "two", "two")])
    assert {one.policy: one.num_tries for one in profiles} == {"one": 1, "two": 2}


def test_pass_at_k_by_hand() -> None:
    assert pass_at(4, 1, 1) == pytest.approx(0.25)
    assert pass_at(4, 1, 2) == pytest.approx(1 - 3 / 6)
    assert pass_at(4, 3, 2) == 1.0
    assert pass_at(2, 0, 2) == 0.0


Answer = Callable[[dict[str, Any]], dict[str, Any] | None]


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], Endpoint]]:
    """A function that starts an OpenAI-compatible endpoint whose messages another function gives; None is a failure."""
    servers: list[ThreadingHTTPServer] = []

    def start(answer: Answer) -> Endpoint:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                message = answer(body)
                data = json.dumps({"choices": [{"message": message}]}).encode()
                self.send_response(200 if message is not None else 500)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        servers.append(server)
        return Endpoint(f"http://127.0.0.1:{server.server_port}/v1", "stub", 1.0, 64, 30.0, 4)

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def shopper(body: dict[str, Any]) -> dict[str, Any]:
    """A model that looks the price up and multiplies, which is right for half of the store's errands."""
    last = body["messages"][-1]
    assert {tool["function"]["name"] for tool in body["tools"]} == {"price", "stock", "buy"}
    asked = re.search(r"What do (\d+) (\w+) cost", body["messages"][0]["content"])
    if asked is None:
        return {"content": "I cannot do that.", "reasoning_content": "hard"}
    if last["role"] == "tool":
        assert last["tool_call_id"] == body["messages"][-2]["tool_calls"][0]["id"]
        return {"content": str(int(asked[1]) * int(last["content"]))}
    call = {"name": "price", "arguments": json.dumps({"item": asked[2]})}
    return {"content": None, "tool_calls": [{"id": "x", "type": "function", "function": call}]}


def test_a_model_behind_an_endpoint_plays_with_tools(serve: Callable[[Answer], Endpoint], tmp_path: Path) -> None:
    out = tmp_path / "rollouts.jsonl"
    rollouts = evaluate(QUIET, serve(shopper), "tools/Store-v0", {}, split="heldout", num_tasks=8, num_tries=2, out=out)
    assert len(rollouts) == len(out.read_text().splitlines()) == 16
    costs = [rollout for rollout in rollouts if "cost?" in rollout["messages"][0]["content"]]
    assert costs and all(rollout["reward"] == 1.0 for rollout in costs)
    assert {rollout["outcome"] for rollout in rollouts} == {"ok"}
    assert replay_file(QUIET, out, None)


def test_failures_of_the_endpoint_are_no_rewards(serve: Callable[[Answer], Endpoint]) -> None:
    for answer in (lambda body: None, lambda body: {"tool_calls": [{}]}):
        (rollout,) = evaluate(
            QUIET, serve(answer), "math/Arithmetic-v0", {}, split="train", num_tasks=1, num_tries=1, out=None
        )
        assert (rollout["reward"], rollout["outcome"]) == (None, "infra_error")
    with pytest.raises(EnvFailure, match="level must be") as refused:  # before anything is played
        evaluate(
            QUIET, serve(shopper), "math/Arithmetic-v0", {"level": 9}, split="train", num_tasks=1, num_tries=1, out=None
        )
    assert refused.value.exit_code == 2


class Longest(Paid):
    """The longest reply of the group earns 1."""

    def score_group(self, conversations: Any) -> Any:
        lengths = [len(conversation[-1].content) for conversation in conversations]
        return [{"longest": float(length == max(lengths))} for length in lengths]


def test_the_tries_at_a_task_are_compared_where_the_environment_compares(serve: Callable[[Answer], Endpoint]) -> None:
    lengths = iter([1, 5, 3, 2] * 3)
    lock = threading.Lock()

    def talk(body: dict[str, Any]) -> dict[str, Any]:
        with lock:
            return {"content": "x" * next(lengths)}

    rollouts = evaluate(
        QUIET, serve(talk), f"{__name__}:Longest", {}, split="train", num_tasks=3, num_tries=4, out=None
    )
    assert [rollout["outcome"] for rollout in rollouts] == ["ok"] * 12
    for first in (0, 4, 8):
        group = rollouts[first : first + 4]
        sizes = [len(rollout["messages"][-1]["content"]) for rollout in group]
        assert [rollout["reward"] for rollout in group] == [float(size == max(sizes)) for size in sizes]
        assert all("longest" in rollout["reward_parts"] for rollout in group)


@pytest.mark.parametrize(
    "message",
    [
        {"content": ["parts"]},
        {"content": None, "tool_calls": [{"function": {"name": None, "arguments": "{}"}}]},
        {"content": "", "tool_calls": "no"},
    ],
)
def test_an_answer_that_is_no_message_is_a_failure_of_the_endpoint(
    message: Any, serve: Callable[[Answer], Endpoint]
) -> None:
    (rollout,) = evaluate(
        QUIET, serve(lambda body: message), f"{__name__}:Paid", {}, split="train", num_tasks=1, num_tries=1, out=None
    )
    assert (rollout["reward"], rollout["outcome"]) == (None, "infra_error")


def test_half_a_character_from_an_endpoint_or_an_environment_passes_through(
    serve: Callable[[Answer], Endpoint],
) -> None:
    endpoint = serve(lambda body: {"content": "\ud800"})
    for env_id in (f"{__name__}:Paid", f"{__name__}:SaysHalfACharacter"):
        (rollout,) = evaluate(QUIET, endpoint, env_id, {}, split="train", num_tasks=1, num_tries=1, out=None)
        assert (rollout["outcome"], rollout["messages"][-1]["content"]) == ("ok", "\ufffd")


def test_arguments_that_are_no_object_go_to_the_tool_as_they_are() -> None:
    call = {"function": {"name": "f", "arguments": "[1]"}}
    assert read_reply({"content": None, "tool_calls": [call]}) == Reply("", "", (ToolCall("f", {"arguments": "[1]"}),))
    told = openai_messages([Message("assistant", "", "", (ToolCall("f", {}), ToolCall("g", {}))), Message("tool", "1")])
    assert told[1]["tool_call_id"] == told[0]["tool_calls"][0]["id"]


def test_a_model_plays_an_episode_that_is_shown(serve: Callable[[Answer], Endpoint]) -> None:
    console = Console(record=True, file=io.StringIO(), width=200)
    play_environment(console, "tools/Store-v0", {}, 0, endpoint=serve(shopper))
    shown = console.export_text()
    assert "-> " in shown and "reward " in shown and "reply 1 of" not in shown
    down = serve(lambda body: None)
    with pytest.raises(PlayError, match="500"):
        play_environment(QUIET, "tools/Store-v0", {}, 0, endpoint=down)
