"""Environments of other projects, from their own installed code: NeMo Gym, OpenEnv, verifiers. `make adapters`."""

import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from envs.adapters.foreign import ForeignError, in_unit_range
from envs.adapters.nemo_gym import NemoGym, messages_of
from envs.adapters.openenv import OpenEnv
from envs.check import check_environment
from envs.event_loop import settle
from envs.json_lines import JsonLineError
from envs.messages import Message, Reply, ToolCall
from envs.registry import make
from envs.scored import RowError
from envs.text_env import EnvironmentOptionError
from rewards.worker_pool import WorkerError

START_DEADLINE_S = 90.0
TASKSET = """
import verifiers.v1 as vf

__all__ = ["AddingTaskset"]

class Data(vf.TaskData):
    answer: int

class Adding(vf.Task[Data]):
    @vf.reward(weight=0.75)
    async def exact(self, trace: vf.Trace) -> float:
        return float(trace.last_reply == str(self.data.answer))

    @vf.reward(weight=0.25)
    async def short(self, trace: vf.Trace) -> float:
        if trace.last_reply == "crash":
            raise RuntimeError("oh")
        return float(0 < len(trace.last_reply) < 4)

class Config(vf.TasksetConfig):
    num_tasks: int = 100

class AddingTaskset(vf.Taskset[Adding, Config]):
    def load(self):
        for n in range(self.config.num_tasks):
            yield Adding(Data(prompt=f"{n}+{n}?", system_prompt="Add.", answer=2 * n), self.config.task)
"""
WITH_TOOLS = TASKSET.replace(
    "def load(self):", "@classmethod\n    def toolsets(cls, config): return [1]\n    def load(self):"
)


@pytest.fixture(scope="module")
def foreign(repo: Path) -> Path:
    folder = repo / ".venv" / "foreign"
    if not (folder / "nemo_gym").is_dir():
        pytest.skip("make adapters installs them")
    return folder


@pytest.fixture(scope="module")
def server(repo: Path, foreign: Path) -> Iterator[str]:
    """The address of a process with real servers (tests/foreign_server.py)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {**os.environ, "PYTHONPATH": str(foreign), "NEMO_GYM_EXTRA_ROOTS": str(foreign)}
    command = [sys.executable, str(repo / "tests" / "foreign_server.py"), str(port)]
    process = subprocess.Popen(command, env=settings, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(f"http://127.0.0.1:{port}/openapi.json", process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.communicate()


def wait_for(address: str, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + START_DEADLINE_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(address).close()
            return
        except OSError:
            time.sleep(0.2)
    process.kill()
    raise AssertionError(f"the server did not start: {process.communicate()[1][-2000:]}")


@pytest.fixture
def opened() -> Iterator[Callable[..., tuple[Any, Any]]]:
    """Makes, resets and in the end closes environments."""
    envs: list[Any] = []

    def open_one(env_id: str, seed: int = 0, **options: Any) -> tuple[Any, Any]:
        envs.append(env := make(env_id))
        messages, _ = settle(env.reset(seed=seed, options=options))
        return env, messages

    yield open_one
    for env in envs:
        settle(env.close())


def nemo_gym(server: str, foreign: Path, module: str) -> dict[str, Any]:
    return {"url": f"{server}/{module}", "rows": str(foreign / "resources_servers" / module / "data" / "example.jsonl")}


def call(name: str, **arguments: Any) -> Reply:
    return Reply("", "I call.", (ToolCall(name, arguments),))


@pytest.mark.slow
def test_tools_of_a_nemo_gym_server_keep_a_state_for_each_rollout(server: str, foreign: Path, opened: Any) -> None:
    options = nemo_gym(server, foreign, "example_session_state_mgmt")
    (left, asked), (right, _) = opened("other/NemoGym-v0", **options), opened("other/NemoGym-v0", **options)
    assert [tool.name for tool in left.tools] == ["increment_counter", "get_counter_value"]
    first, second = map(int, re.findall(r"\d+", asked[-1].content))
    for number in (first, second):
        assert settle(left.step(call("increment_counter", count=number)))[0][0].content == '{"success":true}'
        settle(right.step(call("increment_counter", count=1)))
    told = settle(left.step(call("get_counter_value")))[0][0]
    assert told.name == "get_counter_value" and told.content == f'{{"count":{left._body["expected_count"]}}}'
    assert settle(left.step(Reply("done")))[1:3] == (1.0, True)
    assert settle(right.step(Reply("done")))[1:3] == (0.0, True)


@pytest.mark.slow
def test_the_policy_reaches_no_route_but_the_offered_tools(server: str, foreign: Path, opened: Any) -> None:
    env, _ = opened("other/NemoGym-v0", **nemo_gym(server, foreign, "example_session_state_mgmt"))
    for name in ("verify", "seed_session", "../mcqa/verify", "increment_counter?count=9"):
        assert settle(env.step(call(name)))[0][0].content == f"error: there is no tool {name}"
    assert "int_parsing" in settle(env.step(call("increment_counter", count="x")))[0][0].content


@pytest.mark.slow
def test_a_nemo_gym_server_in_gymnasiums_manner_answers_each_reply(server: str, foreign: Path, opened: Any) -> None:
    options = nemo_gym(server, foreign, "example_multi_turn_gymnasium")
    env, asked = opened("other/NemoGym-v0", split="heldout", **options)
    follow_ups = env._body["follow_ups"]
    assert asked[-1].content == env._body["responses_create_params"]["input"][-1]["content"]
    for question in follow_ups:
        assert settle(env.step(Reply("hm")))[:3] == ((Message("user", question),), 0.0, False)
    assert settle(env.step(Reply(f"It is {env._body['expected_answer']}.")))[1:3] == (1.0, True)


@pytest.mark.slow
def test_rows_of_nemo_gym_are_verified_by_its_own_verifier(server: str, foreign: Path, opened: Any) -> None:
    options = nemo_gym(server, foreign, "mcqa")
    for text, reward in (("\\boxed{%s}", 1.0), ("%s", 0.0)):
        env, _ = opened("other/NemoGym-v0", **options)
        assert settle(env.step(Reply(text % env._body["expected_answer"], "I think.")))[1:3] == (reward, True)


@pytest.mark.slow
def test_an_openenv_server_of_texts_takes_the_reply_as_the_action(server: str, opened: Any) -> None:
    env, asked = opened("other/OpenEnv-v0", url=f"{server}/text", told="Let us play.", reset={"highest": 5})
    assert asked == (Message("user", "Let us play.\nGuess 0 to 5."),)
    assert env.tools == ()
    wanted = 0
    while not (result := settle(env.step(Reply(str(wanted)))))[2]:
        assert result[:2] == ((Message("user", "higher"),), 0.0)
        wanted += 1
    again, _ = opened("other/OpenEnv-v0", url=f"{server}/text", reset={"highest": 5})
    assert settle(again.step(Reply(str(wanted))))[1:3] == (1.0, True)


@pytest.mark.slow
def test_an_openenv_server_of_other_actions_is_played_by_a_tool_and_waited_for(server: str, opened: Any) -> None:
    url = f"{server}/one_number"
    env, _ = opened("other/OpenEnv-v0", url=url)
    assert [tool.name for tool in env.tools] == ["act"]
    assert env.tools[0].parameters["properties"]["number"]["type"] == "integer"
    assert settle(env.step(Reply("7")))[0][0].content == "error: call the tool act, once"
    assert settle(env.step(call("act", number="x")))[0][0].content.startswith("error: number: Input should be a valid")
    assert settle(env.step(call("act", number=-1)))[0] == (Message("tool", "higher", name="act"),)
    waiting = make("other/OpenEnv-v0")
    assert isinstance(waiting, OpenEnv)
    with pytest.raises(TimeoutError):  # the only session is taken
        settle(waiting.reset(seed=0, options={"url": url}), timeout_s=1.0)
    settle(waiting.close())
    settle(env.close())
    assert opened("other/OpenEnv-v0", url=url)[1][0].content == "Guess 0 to 9."


@pytest.mark.slow
def test_what_an_openenv_server_does_wrong_is_an_error_of_the_environment(server: str, opened: Any) -> None:
    env, _ = opened("other/OpenEnv-v0", url=f"{server}/text")
    with pytest.raises(ForeignError, match="EXECUTION_ERROR: invalid literal for int"):
        settle(env.step(Reply("seven")))


@pytest.mark.slow
def test_tasks_of_verifiers_are_scored_by_their_own_rewards(
    foreign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "adding.py").write_text(TASKSET)
    (tmp_path / "calling.py").write_text(WITH_TOOLS)
    monkeypatch.setenv("PYTHONPATH", f"{foreign}{os.pathsep}{tmp_path}")
    env: Any = make("other/Verifiers-v0")
    messages, info = env.reset(seed=0, options={"taskset": "adding", "config": '{"num_tasks": 50}'})
    assert [message.role for message in messages] == ["system", "user"] and len(info["key"]) == 64
    number = int(messages[1].content.split("+")[0])
    assert number < 50
    assert env.step(Reply(str(2 * number)))[1] == 1.0
    assert env.step(Reply("no"))[4]["reward_parts"] == {"exact": 0.0, "short": 0.25}
    with pytest.raises(ForeignError, match=r"taskset adding: .*RuntimeError: oh"):
        env.step(Reply("crash"))
    with pytest.raises(ForeignError, match="calling has tools"):
        env.reset(seed=0, options={"taskset": "calling"})
    with pytest.raises(ForeignError, match="taskset nowhere: ModuleNotFoundError"):
        env.reset(seed=0, options={"taskset": "nowhere"})
    results = check_environment("other/Verifiers-v0", {"taskset": "adding"}, num_seeds=5)
    assert [f"{result.name}: {result.detail}" for result in results if result.status == "failed"] == []


@pytest.mark.slow
def test_the_servers_keep_the_contract(server: str, foreign: Path) -> None:
    for env_id, options in {
        "other/NemoGym-v0": nemo_gym(server, foreign, "mcqa"),
        "other/OpenEnv-v0": {"url": f"{server}/numbers"},
    }.items():
        results = check_environment(env_id, options, num_seeds=3)
        assert [f"{result.name}: {result.detail}" for result in results if result.status == "failed"] == []


def test_what_is_missing_is_named_before_anything_is_asked(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentOptionError, match="give the options url"):
        settle(NemoGym().reset(seed=0))
    with pytest.raises(EnvironmentOptionError, match="give the option url"):
        settle(OpenEnv().reset(seed=0))
    with pytest.raises(EnvironmentOptionError, match="give the option taskset"):
        make("other/Verifiers-v0").reset(seed=0)
    with pytest.raises(WorkerError, match=r"no process of verifiers_worker.py could be started"):
        make("other/Verifiers-v0").reset(seed=0, options={"taskset": "a", "python": "/no/such/python"})
    rows = tmp_path / "rows.jsonl"
    options = {"url": "http://127.0.0.1:9", "rows": str(rows)}
    rows.write_text("{}\n")
    with pytest.raises(JsonLineError, match="line 1 must have responses_create_params"):
        settle(NemoGym().reset(seed=0, options=options))
    rows.write_text('{"responses_create_params": {"tools": []}}\n')
    with pytest.raises(RowError, match="line 1: KeyError: 'input'"):
        settle(NemoGym().reset(seed=0, options=options))
    rows.write_text("".join(f'{{"responses_create_params": {{"input": "{n}?"}}}}\n' for n in range(30)))
    env = NemoGym()
    with pytest.raises(ForeignError, match=r"http://127.0.0.1:9/openapi.json cannot be reached"):
        settle(env.reset(seed=0, options=options))
    settle(env.close())


def test_histories_with_calls_become_messages() -> None:
    items = [
        {
            "role": "developer",
            "content": [{"type": "input_text", "text": "Be "}, {"type": "input_text", "text": "kind."}],
        },
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "I look."},
        {"type": "function_call", "call_id": "a", "name": "look", "arguments": '{"where": "here"}'},
        {"type": "function_call_output", "call_id": "a", "output": "sun"},
    ]
    assert messages_of(items) == (
        Message("system", "Be kind."),
        Message("user", "Weather?"),
        Message("assistant", "I look.", "", (ToolCall("look", {"where": "here"}),)),
        Message("tool", "sun", name="look"),
    )


def test_rewards_are_brought_to_the_unit_range_or_refused() -> None:
    assert [in_unit_range(total, -1.0, 3.0) for total in (-1.0, 0.0, 3.0)] == [0.0, 0.25, 1.0]
    with pytest.raises(ForeignError, match="sum of rewards of 2 is outside of 0 to 1: set lowest and highest"):
        in_unit_range(2, 0, 1)
