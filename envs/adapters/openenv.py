"""The environments of OpenEnv servers, each over a WebSocket. Needs a running server, but no package of OpenEnv.

Plain HTTP requests to such a server share no state; a socket is a session. Servers limit their sessions
(`max_concurrent_envs`). If all are taken, a rollout waits for one until `rollout.reset_timeout_s`.
"""

import asyncio
import contextlib
import json
from collections.abc import Mapping
from typing import Any, ClassVar

import aiohttp

from envs.adapters.foreign import ForeignError, in_unit_range
from envs.messages import Message, Reply, ToolSpec, valid, valid_text
from envs.text_env import EnvironmentOptionError, TextEnv, draw_in_split

FULL, INVALID = "CAPACITY_REACHED", "VALIDATION_ERROR"
FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 5.0
NOT_TOLD = {"reward", "done", "metadata"}


class OpenEnv(TextEnv):
    """Play the environment of an OpenEnv server that runs at `url`.

    If an action is a single text, the reply is that text. Otherwise the policy acts by calling the tool `act`, whose
    parameters are those of the action. An action that the server finds invalid is reported to the policy and uses up a
    turn. The observation's fields are shown as text. Servers whose actions are MCP calls are not covered.

    Options: `url` is the server's base address; `told` is a text shown before the first observation; `reset` contains
    arguments of the server's reset in addition to the seed; `turns` is the maximum number of replies; `lowest` and
    `highest` bound the sum of rewards, which is scaled to [0, 1].
    Reward parts: `return` the sum of rewards, from 0 to 1.
    """

    OPTIONS: ClassVar = {"url": "", "told": "", "reset": {}, "turns": 20, "lowest": 0.0, "highest": 1.0}
    _http: aiohttp.ClientSession | None = None

    async def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:  # type: ignore[override]
        super().reset(seed=seed)
        split, self._options = self.read_options(options)
        if not self._options["url"]:
            raise EnvironmentOptionError("give the option url (of an OpenEnv server)")
        self.max_turns = self._options["turns"]  # type: ignore[misc]
        there = draw_in_split(self.np_random, split, lambda rng: int(rng.integers(2**31)), str)
        await self.close()
        self._http = aiohttp.ClientSession(self._options["url"].rstrip("/") + "/")
        self._read_schema(await self._schema())
        opened = await self._open({"seed": there, **self._options["reset"]})
        self._num_turns, self._return, self._was_rewarded = 0, 0.0, False
        return (Message("user", f"{self._options['told']}\n{shown(opened['observation'])}".strip()),), {
            "key": str(there)
        }

    async def step(self, action: Reply) -> Any:  # type: ignore[override]
        self._num_turns += 1
        chosen = self._action(action)
        answer: dict[str, Any] = {"invalid": chosen}
        if isinstance(chosen, dict):
            answer = await self._ask("step", chosen)
        self._return += answer.get("reward") or 0.0
        self._was_rewarded |= answer.get("reward") is not None
        if answer.get("done") or self._num_turns == self.max_turns:
            if not self._was_rewarded and answer.get("done"):
                raise ForeignError(f"{self._options['url']}: the episode ended without any reward")
            total = in_unit_range(self._return, self._options["lowest"], self._options["highest"])
            return (), total, True, False, {"reward_parts": {"return": total}}
        told = f"error: {answer['invalid']}" if "invalid" in answer else shown(answer["observation"])
        said = Message("tool", told, name="act") if action.tool_calls else Message("user", told)
        return (said,), 0.0, False, False, {}

    async def close(self) -> None:  # type: ignore[override]
        http, self._http = self._http, None
        if http is not None:
            await http.close()  # also closes the socket, which ends the session on the server

    def _read_schema(self, schema: Mapping[str, Any]) -> None:
        fields = {name: field for name, field in schema.get("properties", {}).items() if name != "metadata"}
        needed = [name for name in schema.get("required", []) if name in fields]
        is_text = needed == list(fields) and len(needed) == 1 and fields[needed[0]].get("type") == "string"
        self._text_field = needed[0] if is_text else None
        parameters = {**schema, "type": "object", "properties": fields, "required": needed}
        self.tools = () if is_text else (ToolSpec("act", str(schema.get("description", "Act."))[:1000], parameters),)

    def _action(self, reply: Reply) -> dict[str, Any] | str:
        """The action of a reply, or what is wrong with it."""
        if self._text_field is not None:
            return {self._text_field: valid_text(reply.text)}
        if [call.name for call in reply.tool_calls] != ["act"]:
            return "call the tool act, once"
        return valid(dict(reply.tool_calls[0].arguments))

    async def _schema(self) -> Mapping[str, Any]:
        assert self._http is not None
        try:
            async with self._http.get("schema") as response:
                response.raise_for_status()
                return (await response.json())["action"]
        except (aiohttp.ClientError, KeyError, ValueError) as error:
            raise ForeignError(f"{self._options['url']}/schema describes no action: {error}") from error

    async def _open(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Connect and reset, waiting while the server is full."""
        assert self._http is not None
        wait_s = FIRST_WAIT_S
        while True:
            try:
                self._socket = await self._http.ws_connect("ws", max_msg_size=0)
            except aiohttp.ClientError as error:
                raise ForeignError(f"{self._options['url']}/ws cannot be reached: {error}") from error
            answer = await self._ask("reset", arguments)
            if "full" not in answer:
                return answer
            await self._socket.close()
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)

    async def _ask(self, kind: str, data: dict[str, Any]) -> dict[str, Any]:
        """The observation, or `full`, or `invalid`. Raises `ForeignError` for any other error."""
        with contextlib.suppress(ConnectionError):  # a full server says so and closes the connection
            await self._socket.send_json({"type": kind, "data": data})
        received = await self._socket.receive()
        if received.type is not aiohttp.WSMsgType.TEXT:
            raise ForeignError(f"{self._options['url']}/ws: {kind} was answered by {received.type.name}")
        answer = json.loads(received.data)
        if answer["type"] != "error":
            return answer["data"]
        code, message = answer["data"].get("code"), answer["data"].get("message")
        if code == FULL:
            return {"full": message}
        if kind == "step" and code == INVALID:
            problems = answer["data"].get("errors", ())
            return {
                "invalid": "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in problems) or message
            }
        raise ForeignError(f"{self._options['url']}/ws: {kind} failed: {code}: {message}")


def shown(observation: Mapping[str, Any]) -> str:
    """An observation as text: the text of its only field, otherwise one field per line."""
    fields = {name: value for name, value in observation.items() if name not in NOT_TOLD and value is not None}
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in fields.items()}
    return (
        next(iter(texts.values())) if len(texts) == 1 else "\n".join(f"{name}: {text}" for name, text in texts.items())
    )
