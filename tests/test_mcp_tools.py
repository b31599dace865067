"""Tools of a real MCP server, a process a rollout."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from envs.adapters.mcp_tools import McpTools
from envs.check.behaviour import close_may_be_called_twice, wrong_tool_calls_come_back_as_text
from envs.check.form import FORM_CHECKS
from envs.check.subject import Subject, run_check
from envs.event_loop import settle
from envs.json_lines import JsonLineError
from envs.messages import Message, Reply, ToolCall
from envs.text_env import EnvironmentOptionError

SERVER = '''
from mcp import MCPError
from mcp.server.mcpserver import MCPServer

server = MCPServer("counter")
count = 0

@server.tool()
def add(number: int) -> str:
    """Add to the counter."""
    global count
    if number > 1000:
        raise MCPError(code=-32602, message="Invalid params: a thousand at most")
    if number > 100:
        raise ValueError("too much")
    count += number
    return f"the counter is {count}"

server.run("stdio")
'''


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    pytest.importorskip("mcp")
    (tmp_path / "server.py").write_text(SERVER)
    calls = [{"name": "add", "arguments": {"number": 2}}, {"name": "add", "arguments": {"number": 3}}]
    rows = [{"prompt": f"Add 2 and 3 ({n}).", "answer": "5", "gold_calls": calls} for n in range(30)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"command": [sys.executable, str(tmp_path / "server.py")], "rows": str(tmp_path / "rows.jsonl")}


def call(env: McpTools, **arguments: Any) -> Message:
    return settle(env.step(Reply("", "", (ToolCall("add", arguments),))))[0][0]


@pytest.mark.slow
def test_the_servers_tools_are_called_and_each_rollout_has_its_own_state(options: dict[str, Any]) -> None:
    left, right = McpTools(), McpTools()
    for env in (left, right):
        messages, _ = settle(env.reset(seed=0, options=options))
        assert messages[0].content.startswith("Add 2 and 3")
    assert [tool.name for tool in left.tools] == ["add"]
    assert left.tools[0].parameters["properties"]["number"]["type"] == "integer"
    assert call(left, number=40) == Message("tool", "the counter is 40", name="add")
    assert call(right, number=1).content == "the counter is 1"
    unknown = settle(left.step(Reply("", "", (ToolCall("subtract", {}),))))[0][0]
    assert unknown.content == "error: there is no tool subtract"
    for wrong in (101, 1001, "x"):
        assert call(left, number=wrong).content.startswith("error:")
    assert call(left, number=2).content == "the counter is 42"
    assert settle(left.step(Reply("5")))[1] == 1.0
    assert settle(right.step(Reply("6")))[1] == 0.0
    for env in (left, right):
        settle(env.close())
        settle(env.close())


@pytest.mark.slow
def test_the_server_keeps_the_contract(options: dict[str, Any]) -> None:
    """Those checks that a few server processes suffice for."""
    checks = (*FORM_CHECKS, wrong_tool_calls_come_back_as_text, close_may_be_called_twice)
    results = [run_check(check, Subject("other/Mcp-v0", options, num_seeds=1)) for check in checks]
    assert [f"{result.name}: {result.detail}" for result in results if result.status == "failed"] == []


@pytest.mark.slow
def test_gold_calls_are_played(options: dict[str, Any]) -> None:
    env = McpTools()
    settle(env.reset(seed=1, options={**options, "split": "heldout"}))
    rewards = [settle(env.step(env.gold_reply()))[1:3] for _ in range(3)]
    assert rewards == [(0.0, False), (0.0, False), (1.0, True)]
    settle(env.close())


def test_what_is_missing_is_named(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(EnvironmentOptionError, match="give the options command"):
        settle(McpTools().reset(seed=0))
    with pytest.raises(Exception, match="no/such/server"):
        settle(McpTools().reset(seed=0, options={**options, "command": ["/no/such/server"]}))
    (tmp_path / "bad.jsonl").write_text('{"prompt": "?"}\n')
    with pytest.raises(JsonLineError, match=r"bad.jsonl, line 1 must have answer"):
        settle(McpTools().reset(seed=0, options={**options, "rows": str(tmp_path / "bad.jsonl")}))
