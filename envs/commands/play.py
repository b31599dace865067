"""`python -m envs play`: a person, the gold replies or a model behind an endpoint plays one episode."""

import contextlib
import json
import shlex
from collections.abc import Callable, Sequence
from typing import Any

import httpx
from rich.console import Console
from rich.text import Text

from envs.commands.evaluate import Endpoint
from envs.commands.evaluate import ask as ask_endpoint
from envs.commands.options import open_once
from envs.messages import Message, Reply, ToolCall, valid
from envs.player import EnvTask, NoReplyError, play
from envs.session import Session

Choose = Callable[[Session, Sequence[Message]], Reply]
STYLES = {"system": "magenta", "user": "cyan", "assistant": "green", "tool": "yellow"}
HELP = "Write your reply, then an empty line. A line `!NAME argument=value ...` calls the tool NAME; Ctrl-D gives up."


class PlayError(RuntimeError):
    """The environment failed while it was played."""


class GivenUp(NoReplyError):
    """The person ended the input."""


def play_environment(
    console: Console,
    env_id: str,
    options: dict[str, Any],
    seed: int,
    *,
    gold: bool = False,
    endpoint: Endpoint | None = None,
    read_line: Callable[[str], str] = input,
) -> float | None:
    """Play one episode in the terminal and return its reward; None if the person gave up.

    The environment's calls have a deadline, the person has none. Raises `EnvFailure` if no task can be opened, and
    `PlayError` if the environment fails later.
    """
    open_once(env_id, options)
    with contextlib.ExitStack() as stack:
        choose: Choose | None = None
        if endpoint is not None:
            client = stack.enter_context(httpx.Client(timeout=endpoint.timeout_s))
            choose = lambda session, messages: ask_endpoint(client, endpoint, session.env.tools, messages)  # noqa: E731
        elif gold:
            choose = lambda session, messages: session.gold_reply()  # noqa: E731
        table = _Table(console, read_line, choose)
        task = EnvTask(env_id, seed, options.get("split", "train"), options)
        rollout = play(task, table.reply, Session.installed(env_id))
    table.show(rollout.messages)
    if rollout.reward is None and not table.has_given_up:
        raise PlayError(rollout.error)
    if rollout.reward is not None:
        parts = "".join(f"  {name} {value:.3g}" for name, value in rollout.reward_parts.items())
        cut = "" if rollout.outcome == "ok" else f" ({rollout.outcome})"
        console.print(f"[bold]reward {rollout.reward:.3f}[/bold]{parts}{cut}")
    return rollout.reward


class _Table:
    """The conversation in the terminal, shown as it grows."""

    def __init__(self, console: Console, read_line: Callable[[str], str], choose: Choose | None) -> None:
        """`choose` gives the replies; None asks a person."""
        self._console, self._read_line, self._choose = console, read_line, choose
        self._num_shown = self._num_replies = 0
        self.has_given_up = False

    def reply(self, session: Session, messages: Sequence[Message]) -> Reply:
        """Raises `GivenUp`, `EnvFailure` and `EndpointError`."""
        if not self._num_replies:
            if self._choose is None:
                self._console.print(HELP, style="dim")
            print_tools(self._console, session)
        self.show(messages)
        self._num_replies += 1
        if self._choose is not None:
            return self._choose(session, messages)
        try:
            prompt = f"reply {self._num_replies} of {session.env.max_turns}> "
            reply = ask(self._console, prompt, self._read_line)
        except GivenUp:
            self.has_given_up = True
            raise
        self._num_shown += 1  # a person knows what they wrote
        return reply

    def show(self, messages: Sequence[Message]) -> None:
        for message in messages[self._num_shown :]:
            print_message(self._console, message)
        self._num_shown = max(self._num_shown, len(messages))


def print_tools(console: Console, session: Session) -> None:
    for tool in session.env.tools:
        parameters = json.dumps(tool.parameters.get("properties", {}))
        console.print(f"tool {tool.name}: {tool.description} {parameters}", markup=False)


def ask(console: Console, prompt: str, read_line: Callable[[str], str]) -> Reply:
    """The person's reply. Raises `GivenUp` at the end of the input."""
    lines: list[str] = []
    while True:
        try:
            line = read_line(prompt if not lines else "... ")
        except EOFError:
            console.print("given up")
            raise GivenUp("given up") from None
        if line.startswith("!"):
            try:
                return valid_reply("\n".join(lines), read_call(line[1:]))
            except ValueError as error:
                console.print(f"[red]{error}")
                continue
        if not line and lines:
            return valid_reply("\n".join(lines))
        lines.append(line)


def valid_reply(text: str, *calls: ToolCall) -> Reply:
    """A reply with valid text: a terminal returns bytes that are not UTF-8 as lone surrogates."""
    return valid(Reply(text, "", calls))


def read_call(line: str) -> ToolCall:
    """`name key=value ...` as a call; values are JSON if they can be parsed, else text. Raises `ValueError`."""
    name, *pairs = shlex.split(line) or [""]
    if not name:
        raise ValueError("name the tool after the exclamation mark")
    arguments: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"arguments are name=value, got {pair!r}")
        try:
            arguments[key] = json.loads(value)
        except ValueError:
            arguments[key] = value
    return ToolCall(name, arguments)


def print_message(console: Console, message: Message) -> None:
    console.print(Text(f"{message.role} {message.name}".strip(), style=STYLES[message.role]))
    if message.reasoning:
        console.print(Text(message.reasoning, style="dim italic"))
    if message.content:
        console.print(Text(message.content))
    for call in message.tool_calls:
        console.print(Text(f"-> {call.name}({json.dumps(dict(call.arguments))})", style="yellow"))
