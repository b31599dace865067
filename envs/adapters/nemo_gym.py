"""The resources servers of NeMo Gym as environments, over HTTP. Needs a running server, but no package of NeMo Gym.

A server of the usual kind receives a row (`/seed_session`), has a route for each tool, and scores the conversation at
the end (`/verify`). A gymnasium-style server answers every reply (`/reset`, `/step`). A session is a cookie, so each
rollout has its own cookie jar. Conversations are sent as items of OpenAI's Responses API.
"""

import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import aiohttp

from envs.adapters.foreign import ForeignError, in_unit_range
from envs.json_lines import read_rows
from envs.messages import Message, Reply, ToolCall, ToolSpec, valid, valid_text
from envs.scored import Row, RowError, RowTable
from envs.text_env import EnvironmentOptionError, TextEnv

REQUEST = "responses_create_params"
BAD_GATEWAY = (502, 503, 504)
"""Status codes of a missing server. Other failures of a tool are the tool's answer, as in NeMo Gym's agents."""


class NemoGym(TextEnv):
    """Play the rows of a NeMo Gym resources server that runs at `url`.

    Options: `url` is the server's base address; `rows` is its JSONL file, each row with `responses_create_params`;
    `turns` is the maximum number of replies; `lowest` and `highest` bound its reward, which is scaled to [0, 1].
    Reward parts: the server's `reward_components` if they sum to its reward, otherwise `reward`.
    """

    OPTIONS: ClassVar = {"url": "", "rows": "", "turns": 8, "lowest": 0.0, "highest": 1.0}
    _http: aiohttp.ClientSession | None = None
    _wants_close = False

    @classmethod
    def load_data(cls, options: Mapping[str, Any]) -> None:
        ROWS.load({"path": options.get("rows", "")})

    async def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:  # type: ignore[override]
        super().reset(seed=seed)
        split, self._options = self.read_options(options)
        if not self._options["url"] or not self._options["rows"]:
            raise EnvironmentOptionError(
                "give the options url (of a NeMo Gym resources server) and rows (a JSONL file)"
            )
        rows = ROWS.of_split(split, {"path": self._options["rows"]})
        row = rows[int(self.np_random.integers(len(rows)))]
        self.max_turns = self._options["turns"]  # type: ignore[misc]
        self.tools, self._body = row["tools"], row["body"]
        self._output: list[dict[str, Any]] = []
        self._num_turns, self._return = 0, 0.0
        await self.close()
        self._http = aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True))  # a host may be an IP address
        self._answers_each_reply = "/step" in (await self._ask("GET", "openapi.json"))["paths"]
        said: tuple[Message, ...] = ()
        if self._answers_each_reply:
            opened = await self._ask("POST", "reset", self._body)
            self._wants_close = opened["info"].get("supports_explicit_close") is True
            said = told(opened.get("observation"))
        else:
            await self._ask("POST", "seed_session", self._body)
        return (*row["prompt"], *said), {"key": row["key"]}

    async def step(self, action: Reply) -> Any:  # type: ignore[override]
        self._num_turns += 1
        items = items_of(action, self._num_turns)
        self._output += items
        if self._answers_each_reply:
            return await self._step_there(items)
        results = [await self._call(call, item) for call, item in zip(action.tool_calls, calls_in(items), strict=True)]
        if results and self._num_turns < self.max_turns:
            return tuple(results), 0.0, False, False, {}
        answer = await self._ask("POST", "verify", {**self._body, "response": self._response(self._output)})
        if answer.get("mask_sample"):
            raise ForeignError(
                f"/verify masked the sample: {answer.get('failure_kind')}: {answer.get('failure_reason')}"
            )
        return self._end(answer["reward"], answer.get("reward_components") or {})

    async def close(self) -> None:  # type: ignore[override]
        http, self._http = self._http, None
        if http is not None:
            async with http:
                if self._wants_close:
                    await http.post(f"{self._options['url'].rstrip('/')}/close", json={})

    async def _step_there(self, items: list[dict[str, Any]]) -> Any:
        answer = await self._ask("POST", "step", {**self._body, "response": self._response(items)})
        self._return += answer["reward"]
        if answer["terminated"] or answer["truncated"] or self._num_turns == self.max_turns:
            return self._end(self._return, {})
        outputs = answer["info"].get("tool_outputs", ())
        names = {item["call_id"]: item["name"] for item in calls_in(items)}
        results = (
            Message("tool", text_of(output["output"]), name=names.get(output["call_id"], "")) for output in outputs
        )
        return (*results, *told(answer.get("observation"))), 0.0, False, False, {}

    async def _call(self, call: ToolCall, item: Mapping[str, Any]) -> Message:
        """The tool's answer. Only names of offered tools are used as routes, since `/verify` is a route too."""
        if call.name not in {tool.name for tool in self.tools}:
            text = f"error: there is no tool {call.name}"
        else:
            text = await self._ask_text("POST", call.name, valid(dict(call.arguments)))
        self._output.append({"type": "function_call_output", "call_id": item["call_id"], "output": text})
        return Message("tool", text, name=call.name)

    def _end(self, total: float, components: Mapping[str, float]) -> Any:
        low, high = self._options["lowest"], self._options["highest"]
        reward = in_unit_range(total, low, high)
        is_sum = (low, high) == (0.0, 1.0) and components and abs(sum(components.values()) - reward) < 1e-6
        return (), reward, True, False, {"reward_parts": dict(components) if is_sum else {"reward": reward}}

    def _response(self, output: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": "response",
            "object": "response",
            "created_at": time.time(),
            "model": "policy",
            "output": output,
            "tools": self._body[REQUEST].get("tools", []),
            "tool_choice": "auto",
            "parallel_tool_calls": True,
        }

    async def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Raises `ForeignError` for an answer that is not a JSON object, or that has an error status."""
        return json.loads(await self._ask_text(method, path, body, must_succeed=True))

    async def _ask_text(self, method: str, path: str, body: Any = None, *, must_succeed: bool = False) -> str:
        assert self._http is not None, "reset comes first"
        address = f"{self._options['url'].rstrip('/')}/{path}"
        try:
            async with self._http.request(method, address, json=body) as response:
                text = await response.text()
        except aiohttp.ClientError as error:
            raise ForeignError(f"{address} cannot be reached: {error}") from error
        if response.status in BAD_GATEWAY or (must_succeed and (response.status != 200 or not text.startswith("{"))):
            raise ForeignError(f"{address} answered {response.status}: {text[:300]}")
        return text


def load_rows(path: str = "") -> list[Row]:
    """The rows of a server's file, split by their questions. Raises `RowError`, `JsonLineError`."""
    rows = []
    for number, body in enumerate(read_rows(Path(path), REQUEST), start=1):
        try:
            asked = body[REQUEST]["input"]
            tools = tuple(
                ToolSpec(tool["name"], tool.get("description") or tool["name"], tool["parameters"])
                for tool in body[REQUEST].get("tools") or ()
            )
            prompt = messages_of([{"role": "user", "content": asked}] if isinstance(asked, str) else asked)
        except (KeyError, TypeError) as error:
            raise RowError(f"{path}, line {number}: {type(error).__name__}: {error}") from error
        rows.append({"prompt": prompt, "key": json.dumps(asked, sort_keys=True), "tools": tools, "body": body})
    return rows


ROWS = RowTable(load_rows)


def messages_of(items: Iterable[Mapping[str, Any]]) -> tuple[Message, ...]:
    """Responses items as messages. Raises `KeyError` for items other than text, calls and their results."""
    messages: list[Message] = []
    names: dict[str, str] = {}
    for item in items:
        if item.get("type") == "function_call":
            names[item["call_id"]] = item["name"]
            call = ToolCall(item["name"], json.loads(item["arguments"]))
            last = messages.pop() if messages and messages[-1].role == "assistant" else Message("assistant", "")
            messages.append(Message("assistant", last.content, last.reasoning, (*last.tool_calls, call)))
        elif item.get("type") == "function_call_output":
            messages.append(Message("tool", text_of(item["output"]), name=names[item["call_id"]]))
        else:
            role = "system" if item["role"] == "developer" else item["role"]
            messages.append(Message(role, text_of(item["content"])))
    return tuple(messages)


def text_of(content: Any) -> str:
    """The text of an item's content, which is text or a list of parts with text."""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def items_of(reply: Reply, turn: int) -> list[dict[str, Any]]:
    """A reply as Responses items: reasoning, message, calls."""
    items: list[dict[str, Any]] = []
    if reply.reasoning:
        summary = [{"type": "summary_text", "text": valid_text(reply.reasoning)}]
        items.append({"type": "reasoning", "id": f"reasoning_{turn}", "summary": summary})
    if reply.text or not reply.tool_calls:
        content = [{"type": "output_text", "text": valid_text(reply.text), "annotations": []}]
        kind = {"type": "message", "role": "assistant", "status": "completed"}
        items.append({**kind, "id": f"message_{turn}", "content": content})
    for number, call in enumerate(reply.tool_calls):
        name = {"type": "function_call", "name": call.name, "call_id": f"call_{turn}_{number}"}
        items.append({**name, "arguments": json.dumps(valid(dict(call.arguments)))})
    return items


def calls_in(items: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [item for item in items if item["type"] == "function_call"]


def told(observation: Any) -> tuple[Message, ...]:
    return (Message("user", str(observation)),) if observation else ()
