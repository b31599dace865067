"""The tools of an MCP server as an environment: questions from a file, answered with the server's tools."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from envs.json_lines import read_rows
from envs.messages import Message, Reply, ToolCall, ToolSpec
from envs.package_data import DataPackageError
from envs.scored import RowTable
from envs.text_env import EnvironmentOptionError, TextEnv
from rewards.exact import text_correct

CALL_DEADLINE_S = 30.0


class McpSession:
    """A separate server process and its client, which live in one asyncio task until they are closed."""

    def __init__(self, command: tuple[str, ...]) -> None:
        self._questions: asyncio.Queue[tuple[str, dict[str, Any], asyncio.Future[str]] | None] = asyncio.Queue()
        self._ready: asyncio.Future[tuple[ToolSpec, ...]] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._live(command))

    async def tools(self) -> tuple[ToolSpec, ...]:
        """The tools that the server offers. Raises whatever starting the server raised."""
        return await self._ready

    async def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """The text of a tool's result, including errors that the server reports."""
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._questions.put_nowait((name, dict(arguments), answer))
        await asyncio.wait([answer, self._task], return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise RuntimeError("the MCP server ended")
        return answer.result()

    async def close(self) -> None:
        self._questions.put_nowait(None)
        await asyncio.wait([self._task], timeout=CALL_DEADLINE_S)
        self._task.cancel()

    async def _live(self, command: tuple[str, ...]) -> None:
        """Enter and exit the client in one asyncio task, as its cancel scopes require."""
        from mcp import Client, MCPError, StdioServerParameters
        from mcp_types import INVALID_PARAMS

        try:
            server = StdioServerParameters(command=command[0], args=list(command[1:]))
            async with Client(server, read_timeout_seconds=CALL_DEADLINE_S) as client:
                offered = (await client.list_tools()).tools
                specs = (ToolSpec(tool.name, tool.description or tool.name, tool.input_schema) for tool in offered)
                self._ready.set_result(tuple(specs))
                while (question := await self._questions.get()) is not None:
                    name, arguments, answer = question
                    try:
                        result = await client.call_tool(name, arguments)
                        told = "\n".join(getattr(part, "text", f"[{part.type}]") for part in result.content)
                        answer.set_result(f"error: {told}" if result.is_error else told)
                    except MCPError as error:
                        if error.code != INVALID_PARAMS:
                            answer.set_exception(error)
                        else:  # the policy's arguments: some servers refuse them by the protocol
                            answer.set_result(f"error: {error}")
                    except Exception as error:
                        answer.set_exception(error)
        except Exception as error:
            if not self._ready.done():
                self._ready.set_exception(error)


ROWS = RowTable(lambda path="": read_rows(Path(path), "prompt", "answer"))


class McpTools(TextEnv):
    """Answer questions with the tools of an MCP server; each rollout has its own server process.

    The reply without a tool call is the answer. It must equal the row's answer, ignoring case.

    Options: `command` is a list that starts the server on stdin and stdout; `rows` is a JSONL file with `prompt`,
    `answer` and, for gold replies, `gold_calls` (`name`, `arguments`); `turns` is the maximum number of replies.
    Reward parts: `answer` 1 if it is right.
    """

    OPTIONS: ClassVar = {"command": (), "rows": "", "turns": 8}
    _session: McpSession | None = None

    @classmethod
    def load_data(cls, options: Mapping[str, Any]) -> None:
        ROWS.load({"path": options.get("rows", "")})

    async def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:  # type: ignore[override]
        super().reset(seed=seed)
        split, chosen = self.read_options(options)
        if not chosen["command"] or not chosen["rows"]:
            raise EnvironmentOptionError(
                "give the options command (a list that starts an MCP server) and rows (a file)"
            )
        rows = ROWS.of_split(split, {"path": chosen["rows"]})
        self.max_turns = chosen["turns"]  # type: ignore[misc]
        self._row = rows[int(self.np_random.integers(len(rows)))]
        self._num_called = 0
        await self.close()
        try:
            self._session = McpSession(tuple(chosen["command"]))
            self.tools = await self._session.tools()
        except ImportError as error:
            raise DataPackageError(f"MCP tools need the package mcp ({error}); try: pip install mcp") from error
        return (Message("user", self._row["prompt"]),), {"key": self._row["prompt"]}

    async def step(self, action: Reply) -> Any:  # type: ignore[override]
        assert self._session is not None
        if action.tool_calls:
            self._num_called += len(action.tool_calls)
            texts = [await self._called(call) for call in action.tool_calls]
            results = [
                Message("tool", text, name=call.name) for text, call in zip(texts, action.tool_calls, strict=True)
            ]
            return tuple(results), 0.0, False, False, {}
        reward = text_correct(action.text, str(self._row["answer"]))
        return (), reward, True, False, {"reward_parts": {"answer": reward}}

    async def _called(self, call: ToolCall) -> str:
        assert self._session is not None
        if call.name not in {tool.name for tool in self.tools}:
            return f"error: there is no tool {call.name}"
        return await self._session.call(call.name, call.arguments)

    def gold_reply(self) -> Reply:
        calls = self._row.get("gold_calls", ())
        if self._num_called < len(calls):
            return Reply("", "", (ToolCall(calls[self._num_called]["name"], calls[self._num_called]["arguments"]),))
        return Reply(str(self._row["answer"]))

    async def close(self) -> None:  # type: ignore[override]
        session, self._session = self._session, None
        if session is not None:
            await session.close()
